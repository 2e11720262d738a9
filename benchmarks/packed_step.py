"""A training step on packed rows against the same samples padded to the longest of a batch.

Attention costs each position as much as there is before it in its row, and packed rows are longer
than most padded ones; so the gain depends on the share of attention in a step, and two models are
measured. Forward FLOPs of a block per position are 2 * weights, and 2 * T * N * H for attention
(half of the square):

    Llama-3.1 8B, T = 4096    436 M and 33.6 M: attention is 7.1 %
    `PROPORTIONED`, T = 1024  1.67 M and 0.131 M: 7.3 %
    `SMALL`, T = 1024         0.49 M and 0.262 M: 35 %

The first of ours stands for a real model; the second is as narrow as those of the demos.
"""

import statistics
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from length_mix import llava_like
from our_step import OurStep

from metamorph_jax.config.schema_model import (
    LlamaConfig,
    ModelConfig,
    VisionConfig,
    VisualTokensConfig,
)
from metamorph_jax.config.schema_run import DataConfig, OptimizerConfig, StageConfig
from metamorph_jax.data.packing import pack_rows
from metamorph_jax.data.rows import build_rows, pixel_slots
from metamorph_jax.data.templates import Example
from metamorph_jax.training.forward import make_forward, row_counts

TOKENS_PER_IMAGE, IMAGE_SIZE, VOCAB_SIZE = 64, 32, 500
PACKED_ROWS, PADDED_ROWS = 4, 16  # of a batch
SAME_LOSS = 1e-5


def make_model(**llm: int) -> ModelConfig:
    """Returns a model with a decoder of two layers and a small tower."""
    return ModelConfig(
        llm=LlamaConfig(vocab_size=VOCAB_SIZE, num_layers=2, head_dim=32, **llm),
        vision=VisionConfig(
            image_size=IMAGE_SIZE,
            patch_size=4,
            num_layers=1,
            num_heads=2,
            embed_dim=32,
            mlp_dim=64,
        ),
        visual_tokens=VisualTokensConfig(num_tokens=TOKENS_PER_IMAGE),
    )


PROPORTIONED = make_model(num_heads=2, num_kv_heads=1, embed_dim=256, mlp_dim=1024)
SMALL = make_model(num_heads=4, num_kv_heads=2, embed_dim=128, mlp_dim=512)


def make_samples(count: int, max_seq_len: int, seed: int = 0) -> list[Example]:
    """Returns samples of the length mix: an image first, an answer of a third of the text last.

    Every fourth image is one that the model has to predict.
    """
    random = np.random.default_rng(seed)
    lengths, num_images = llava_like(count, TOKENS_PER_IMAGE, max_seq_len, seed)
    samples = []
    for number, (length, images) in enumerate(zip(lengths, num_images, strict=True)):
        visual_index = np.full(length, -1, np.int32)
        visual_index[2 : 2 + images * TOKENS_PER_IMAGE] = np.arange(images * TOKENS_PER_IMAGE)
        supervised = np.arange(length) >= length - max(1, (length - images * TOKENS_PER_IMAGE) // 3)
        samples.append(
            Example(
                tokens=np.where(visual_index < 0, random.integers(0, VOCAB_SIZE, length), 0),
                supervised=supervised & (visual_index < 0),
                visual_index=visual_index,
                image_index=visual_index // TOKENS_PER_IMAGE,
                images=(f"{number}.png",) * images,
                image_is_answer=(number % 4 == 0,) * images,
                where=f"mix:{number}",
            )
        )
    return samples


def make_batch(rows: list[list[int]], samples: list[Example], max_seq_len: int, max_images: int):
    """Returns rows of samples as one batch; a sample's image depends on its number alone."""

    def image(number: int) -> np.ndarray:
        side = (IMAGE_SIZE, IMAGE_SIZE, 3)
        return np.random.default_rng(number).integers(0, 256, side, np.uint8)

    filled = [
        (
            [samples[number] for number in row],
            [image(number) for number in row for _ in samples[number].images],
        )
        for row in rows
    ]
    return build_rows(
        filled,
        pixel_slots(IMAGE_SIZE),
        max_seq_len=max_seq_len,
        max_images=max_images,
        num_visual_tokens=TOKENS_PER_IMAGE,
    )


def packed_batches(samples: list[Example], max_seq_len: int) -> Iterator[dict]:
    """Yields batches of packed rows; rows that are missing in the last one are empty."""
    lengths = np.array([len(sample) for sample in samples])
    num_images = np.array([len(sample.images) for sample in samples])
    plan = pack_rows(np.arange(len(samples)), lengths, num_images, max_seq_len, 12)
    rows = [plan[row].tolist() for row in range(len(plan))]
    rows += [[]] * (-len(rows) % PACKED_ROWS)
    most = max(sum(num_images[row]) for row in rows)
    for first in range(0, len(rows), PACKED_ROWS):
        yield make_batch(rows[first : first + PACKED_ROWS], samples, max_seq_len, most)


def padded_batches(samples: list[Example]) -> Iterator[dict]:
    """Yields batches of one sample a row, as long as the longest of the batch."""
    for first in range(0, len(samples), PADDED_ROWS):
        rows = [[number] for number in range(first, min(first + PADDED_ROWS, len(samples)))]
        yield make_batch(rows, samples, max(len(samples[number]) for (number,) in rows), 1)


class Training:
    """Training on one way of collating.

    Args:
        model: to train.
        batches: one pass over the samples.

    Attributes:
        losses: mean of each loss over all samples, with the parameters of the beginning.
    """

    def __init__(self, model: ModelConfig, batches: list[dict]):
        stage = StageConfig(
            name="bench",
            data=DataConfig(sources=()),
            trained=("connector", "language_model", "vision_head"),
            optimizer=OptimizerConfig(learning_rate=1e-4),
            total_steps=1000,
            global_batch_size=PACKED_ROWS,
        )
        self._batches, self._ours = batches, OurStep(model, stage)
        with jax.set_mesh(self._ours.mesh):
            self.losses = mean_losses(model, stage, self._ours.state.params, batches)

    def seconds(self) -> tuple[float, float]:
        """Returns what a pass takes, on the clock and of all cores; the first one also compiles."""
        start, start_of_cores = time.perf_counter(), time.process_time()
        ours = self._ours
        with jax.set_mesh(ours.mesh):
            for batch in self._batches:
                ours.state, metrics = ours.step(ours.state, batch)
            jax.block_until_ready((ours.state, metrics))
        return time.perf_counter() - start, time.process_time() - start_of_cores


def mean_losses(
    model: ModelConfig, stage: StageConfig, params: dict, batches: list[dict]
) -> dict[str, float]:
    """Returns each loss per token over all batches."""
    forward = jax.jit(make_forward(model, stage))
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for batch in batches:
        for total, part in ((sums, forward(params, batch)), (counts, row_counts(stage, batch))):
            for name, rows in part.items():
                total[name] = total.get(name, 0.0) + float(jnp.sum(rows))
    return {name: sums[name] / counts[name] for name in ("text", "visual")}


def speedup(model: ModelConfig, count: int, max_seq_len: int, repeats: int) -> float:
    """Prints and returns how many times the useful tokens per second packing gives.

    The two ways take turns, so that load hits both alike; the ratio is the median over the turns.

    Raises:
        AssertionError: the losses per token differ.
    """
    samples = make_samples(count, max_seq_len)
    tokens = sum(map(len, samples))
    ways = {"packed": list(packed_batches(samples, max_seq_len))}
    ways["padded"] = list(padded_batches(samples))
    trainings = {name: Training(model, batches) for name, batches in ways.items()}
    turns = [
        {name: training.seconds() for name, training in trainings.items()}
        for _ in range(1 + repeats)  # the first turn compiles
    ][1:]
    for name, batches in ways.items():
        secs = statistics.median(turn[name][0] for turn in turns)
        positions = sum(batch["tokens"].size for batch in batches)
        print(
            f"step, {name}: {tokens / secs:10,.0f} useful tokens a second, "
            f"{tokens / positions:6.1%} of positions useful"
        )
    check_losses(trainings["packed"].losses, trainings["padded"].losses)
    ratios, busy = (
        [turn["padded"][clock] / turn["packed"][clock] for turn in turns] for clock in (0, 1)
    )
    print(f"step, ratio of each turn: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
    print(f"step, ratio in seconds of CPU: {statistics.median(busy):.2f}x")
    return statistics.median(ratios)


def check_losses(packed: dict[str, float], padded: dict[str, float]) -> None:
    """Prints the losses per token and asserts that both ways have the same."""
    for name, loss in packed.items():
        difference = abs(loss - padded[name])
        print(f"parity  {name} loss per token {loss:.6f}, |packed - padded| {difference:.1e}")
        assert difference <= SAME_LOSS, f"the {name} losses differ by more than {SAME_LOSS}"
