"""Training MetaMorph 8B on one accelerator: rate, MFU, peak memory, beside transformers in torch.

    python benchmarks/gpu/train_8b.py [--stage=vpit|adapter] [--steps=10] [--json=FILE]
        [--without_torch] [--quick] [--config.model.llm.remat=full ...]

Samples have the lengths of a LLaVA-like mix (`length_mix.py`).

    parity   a tiny decoder in float32 with equal weights on both sides, samples of text: loss per
             token of our packed rows and of torch's padded ones, equal within 1e-4
    ours     8B with random weights, the stage's own step; rows of 4,096 packed, two of them; an
             image comes as 64 kept features, so that no tower runs
    torch    `LlamaForCausalLM` of the same size in bfloat16 with SDPA, gradient checkpointing and
             `AdamW(fused=True)`: as many samples a step, padded to the longest, images as 64 more
             tokens of text. Full fine-tuning only

Both sides count useful tokens, which padding is not. MFU is by the causal formula
(`metrics/flops.py`). Each side runs in a process of its own, so that the first gives back its
memory. Goals on an H200: vpit 45 % MFU, 1.5x torch, at most 120 GiB; adapter 14,000 tokens/s.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import TOKENS_PER_IMAGE, goal, report, run_config
from length_mix import llava_like

from metamorph_jax.config.overrides import split_arguments
from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.config.schema_run import RunConfig, StageConfig
from metamorph_jax.data.packing import pack_rows
from metamorph_jax.data.rows import Slots, build_rows
from metamorph_jax.data.templates import Example
from metamorph_jax.metrics.flops import count_batch, model_flops

SAME_LOSS, WARM_UP_STEPS = 1e-4, 2
MIN_MFU, MIN_RATIO, MIN_ADAPTER_RATE = 0.45, 1.5, 14_000.0


def make_samples(count: int, stage: StageConfig, vocab_size: int, with_images: bool):
    """Returns samples whose last third is an answer; an image comes first."""
    random = np.random.default_rng(0)
    longest = stage.data.max_seq_len
    lengths, num_images = llava_like(count, TOKENS_PER_IMAGE, longest, seed=0)
    samples = []
    for number, (length, images) in enumerate(zip(lengths, num_images, strict=True)):
        images = int(images) if with_images and length > TOKENS_PER_IMAGE + 4 else 0
        visual_index = np.full(length, -1, np.int32)
        visual_index[2 : 2 + images * TOKENS_PER_IMAGE] = np.arange(images * TOKENS_PER_IMAGE)
        tokens = np.where(visual_index < 0, random.integers(0, vocab_size, length), 0)
        samples.append(
            Example(
                tokens=tokens,
                supervised=np.arange(length) >= length - max(1, length // 3),
                visual_index=visual_index,
                image_index=visual_index // TOKENS_PER_IMAGE,
                images=(f"{number}.png",) * images,
                image_is_answer=(number % 4 == 0,) * images,
                where=f"mix:{number}",
            )
        )
    return samples


def packed_batch(samples: list[Example], model: ModelConfig, stage: StageConfig) -> dict:
    """Returns the first rows that the samples fill, an image as kept features."""
    lengths = np.array([len(sample) for sample in samples])
    num_images = np.array([len(sample.images) for sample in samples])
    limits = stage.data.max_seq_len, stage.data.max_images
    plan = pack_rows(np.arange(len(samples)), lengths, num_images, *limits)
    shape = (model.visual_tokens.num_tokens, model.visual_dim)
    random, filled = np.random.default_rng(1), []
    for row in range(stage.global_batch_size):
        examples = [samples[number] for number in plan[row].tolist()]
        count = sum(len(example.images) for example in examples)
        features = random.normal(size=(count, *shape))
        filled.append((examples, features / np.linalg.norm(features, axis=-1, keepdims=True)))
    return build_rows(
        filled,
        Slots("features", shape, np.dtype(np.float32)),
        max_seq_len=limits[0],
        max_images=limits[1],
        num_visual_tokens=model.visual_tokens.num_tokens,
    )


def padded_batch(samples: list[Example]) -> dict[str, np.ndarray]:
    """Returns ids, mask and labels of one sample a row, padded to the longest."""
    shape = (len(samples), max(map(len, samples)))
    ids, mask, labels = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, -100)
    for row, sample in enumerate(samples):
        ids[row, : len(sample)], mask[row, : len(sample)] = sample.tokens, 1
        labels[row, : len(sample)] = np.where(sample.supervised, sample.tokens, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def timed(step: Callable[[], object], steps: int) -> tuple[float, float]:
    """Returns seconds of the first call, and the median of `steps` after the warm-up."""
    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    times = []
    for _ in range(WARM_UP_STEPS + steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return first, statistics.median(times[WARM_UP_STEPS:])


def run_ours(config: RunConfig, stage: StageConfig, steps: int) -> dict:
    """Returns what our step does on packed rows."""
    import jax
    from our_step import OurStep

    from metamorph_jax.metrics.throughput import peak_flops_per_device

    model = config.model
    samples = make_samples(64 * stage.global_batch_size, stage, model.llm.vocab_size, True)
    batch = jax.device_put(packed_batch(samples, model, stage))
    counts = count_batch(jax.device_get(batch), TOKENS_PER_IMAGE)
    flops = model_flops(model, counts, stage.trained, stage.excluded, has_features=True)
    step = OurStep(model, stage)
    first, secs = timed(lambda: step(batch), steps)
    device = jax.devices()[0]
    peak = peak_flops_per_device(device.device_kind)
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "device": device.device_kind,
        "jax": jax.__version__,
        "ours: first step, with compiling, s": first,
        "ours: step, s": secs,
        "ours: useful tokens/s": counts.num_tokens / secs,
        "ours: fill of rows": counts.num_tokens / batch["tokens"].size,
        "ours: TFLOP/s (causal formula)": flops / secs / 1e12,
        "ours: MFU": flops / secs / peak if peak else None,
        "ours: peak memory, GiB": memory / 2**30 if memory else None,
    }


def run_torch(config: RunConfig, stage: StageConfig, steps: int) -> dict:
    """Returns what transformers does on as many useful tokens, padded to the longest sample."""
    import torch
    from torch_llama import hf_config
    from transformers import LlamaForCausalLM

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    llm = config.model.llm
    samples = make_samples(64 * stage.global_batch_size, stage, llm.vocab_size, False)
    wanted, chosen = stage.global_batch_size * stage.data.max_seq_len, []
    while sum(map(len, chosen)) < wanted:
        chosen.append(samples[len(chosen)])
    batch = {name: torch.from_numpy(v).to(device) for name, v in padded_batch(chosen).items()}
    torch.set_default_dtype(getattr(torch, config.model.param_dtype))
    with device:
        model = LlamaForCausalLM(hf_config(llm)).train()
    torch.set_default_dtype(torch.float32)
    model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0, fused=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    _, secs = timed(step, steps)
    useful = int(batch["attention_mask"].sum())
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return {
        "torch": torch.__version__,
        "torch: step, s": secs,
        "torch: useful tokens/s": useful / secs,
        "torch: fill of rows": useful / batch["input_ids"].numel(),
        "torch: peak memory, GiB": memory,
    }


def run_parity(config: RunConfig, stage: StageConfig, steps: int) -> dict:
    """Returns the difference of the losses of both sides; raises AssertionError if too large."""
    del config, steps
    import jax
    import torch
    from torch_llama import torch_llama

    from metamorph_jax.models.init import init_params
    from metamorph_jax.training.forward import make_forward, row_counts

    jax.config.update("jax_default_matmul_precision", "highest")  # GPUs round float32 otherwise
    tiny = run_config(True, {})
    model, stage = tiny.model, dataclasses.replace(tiny.stages[1], global_batch_size=3)
    samples = make_samples(12, stage, model.llm.vocab_size, False)
    params = init_params(model, jax.random.key(0))
    batch = packed_batch(samples, model, stage)
    sums = jax.jit(make_forward(model, stage))(params, batch)["text"]
    ours = float(sums.sum() / row_counts(stage, batch)["text"].sum())
    lengths = np.array([len(sample) for sample in samples])
    limits = stage.data.max_seq_len, stage.data.max_images
    plan = pack_rows(np.arange(len(samples)), lengths, np.zeros_like(lengths), *limits)
    used = [samples[number] for row in range(3) for number in plan[row].tolist()]
    theirs = torch_llama(model.llm, params["language_model"])
    with torch.no_grad():
        padded = {name: torch.from_numpy(value) for name, value in padded_batch(used).items()}
        loss = float(theirs(**padded).loss)
    assert abs(ours - loss) <= SAME_LOSS, f"losses per token differ: {ours} and {loss}"
    return {"parity: |loss packed, ours - padded, torch|": abs(ours - loss)}


SIDES = {"parity": run_parity, "ours": run_ours, "torch": run_torch}


def run_side(side: str, argv: list[str]) -> dict:
    """Returns what one side measured, in a process of its own."""
    command = [sys.executable, __file__, *argv, f"--side={side}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--stage", choices=("vpit", "adapter"), default="vpit")
    parser.add_argument("--steps", type=int, default=10, help="timed, after the warm-up")
    parser.add_argument("--quick", action="store_true", help="a tiny model, without accelerator")
    parser.add_argument("--without_torch", action="store_true", help="our side alone, no parity")
    parser.add_argument("--side", choices=SIDES, help="one side, in this process")
    parser.add_argument("--json", type=Path, help="file for the results")
    overrides, rest = split_arguments(argv)
    flags = parser.parse_args(rest)
    config = run_config(flags.quick, overrides)
    stage = next(stage for stage in config.stages if stage.name == flags.stage)
    if flags.side:
        print(json.dumps(SIDES[flags.side](config, stage, flags.steps)))
        return
    full = flags.stage == "vpit"
    sides = ["ours"]
    if not flags.without_torch:
        sides = ["parity", "ours", "torch"] if full else ["parity", "ours"]
    results: dict = {"stage": flags.stage, "quick": flags.quick}
    for side in sides:
        results |= run_side(side, argv)
    if full:
        results["goal: MFU"] = goal(results["ours: MFU"], MIN_MFU, flags.quick)
    else:
        rate = results["ours: useful tokens/s"]
        results["goal: useful tokens/s"] = goal(rate, MIN_ADAPTER_RATE, flags.quick)
    if "torch" in sides:
        ratio = results["ours: useful tokens/s"] / results["torch: useful tokens/s"]
        results["ratio of useful tokens/s, ours / torch"] = ratio
        results["goal: ratio"] = goal(ratio, MIN_RATIO, flags.quick)
    report(results, flags.json)


if __name__ == "__main__":
    main(sys.argv[1:])
