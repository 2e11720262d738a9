"""A training step of ours against one of transformers in torch.

    python benchmarks/train_step.py [--quick] [--repeats=10]

Both train the same decoder (width 512, 8 layers, 32,000 entries) on the same rows (2 x 512 tokens,
no padding) in float32: loss, gradients, clipping, AdamW with decay of matrices.

    ours     the step that a run makes (`training/step.py`), its weights moved by `hub/`
    torch    `LlamaForCausalLM` with SDPA, `torch.optim.AdamW(fused=True)`

The losses of the first steps are asserted to agree within 1e-4; compilation is not counted. How
much of the ratio is the two libraries' matrix products is measured beside it: all products of the
step, forwards and backwards, alone, at their own shapes. "calibrated" is the ratio of the shares
that both steps reach of that; it would be 1 if both did nothing but products.
"""

import argparse
import dataclasses
import os
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import torch
from our_step import OurStep, text_batch, text_model
from timing import median_seconds, print_at_most, print_versions
from torch_llama import torch_llama

from metamorph_jax.config.schema_model import LlamaConfig, ModelConfig
from metamorph_jax.config.schema_run import (
    DataConfig,
    LossConfig,
    OptimizerConfig,
    StageConfig,
)
from metamorph_jax.metrics.flops import count_batch, model_flops
from metamorph_jax.models.init import init_params

LLM = LlamaConfig(
    vocab_size=32000,
    num_layers=8,
    num_heads=8,
    num_kv_heads=8,
    head_dim=64,
    embed_dim=512,
    mlp_dim=1408,
)
QUICK = dataclasses.replace(LLM, vocab_size=500, num_layers=2, num_heads=2, num_kv_heads=2)
QUICK = dataclasses.replace(QUICK, embed_dim=128, mlp_dim=256)
NUM_COMPARED, SAME_LOSS, GOAL = 4, 1e-4, 1.0
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-4, warmup_ratio=0.0, weight_decay=0.1, max_grad_norm=1.0
)


def make_stage(num_rows: int, length: int) -> StageConfig:
    """Returns a stage that trains the whole decoder."""
    return StageConfig(
        name="bench",
        data=DataConfig(sources=(), max_seq_len=length),
        trained=("language_model",),
        optimizer=OPTIMIZER,
        loss=LossConfig(visual_weight=0.0),
        total_steps=1_000_000,  # the rate stays what it is
        global_batch_size=num_rows,
    )


class TorchStep:
    """The same training in eager torch.

    Args:
        llm: the decoder.
        language_model: its parameters.
        tokens: ids of the batch, [B, T].
    """

    def __init__(self, llm: LlamaConfig, language_model: dict, tokens: np.ndarray):
        self._model, self._ids = torch_llama(llm, language_model), torch.from_numpy(tokens)
        matrices = [p for p in self._model.parameters() if p.ndim > 1]
        others = [p for p in self._model.parameters() if p.ndim == 1]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": OPTIMIZER.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=OPTIMIZER.learning_rate,
            betas=(OPTIMIZER.b1, OPTIMIZER.b2),
            eps=OPTIMIZER.eps,
            fused=True,
        )

    def __call__(self) -> float:
        """Trains on the batch; returns the loss."""
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._model(input_ids=self._ids, labels=self._ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), OPTIMIZER.max_grad_norm)
        self._optimizer.step()
        return float(loss.detach())


def check_losses(ours: Callable[[], float], theirs: Callable[[], float]) -> None:
    """Prints the losses of the first steps; raises AssertionError if they differ."""
    for step in range(NUM_COMPARED):
        pair = ours(), theirs()
        difference = abs(pair[0] - pair[1])
        print(f"parity  loss of step {step}: {pair[0]:.6f}, |ours - torch| {difference:.1e}")
        assert difference <= SAME_LOSS, f"the losses differ by more than {SAME_LOSS}"


def product_shapes(llm: LlamaConfig) -> list[tuple[int, int, int]]:
    """Returns (inputs, outputs, how many) of the matrices that every token meets."""
    heads, kv_heads = llm.num_heads * llm.head_dim, llm.num_kv_heads * llm.head_dim
    return [
        (llm.embed_dim, heads, llm.num_layers),
        (llm.embed_dim, kv_heads, 2 * llm.num_layers),
        (heads, llm.embed_dim, llm.num_layers),
        (llm.embed_dim, llm.mlp_dim, 2 * llm.num_layers),
        (llm.mlp_dim, llm.embed_dim, llm.num_layers),
        (llm.embed_dim, llm.vocab_size, 1),
    ]


def make_products(llm: LlamaConfig, num_tokens: int) -> dict[str, Callable[[], object]]:
    """Returns, for each library, a function that computes one product of each kind and shape.

    Three per matrix: the result, and the gradients of what enters and of the matrix.
    """
    random = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    sizes = [size[:2] for size in product_shapes(llm)]
    arrays = [(draw(num_tokens, m), draw(m, n), draw(num_tokens, n)) for m, n in sizes]
    ours = [jax.device_put(group) for group in arrays]
    theirs = [
        (torch.from_numpy(x), torch.from_numpy(np.ascontiguousarray(w.T)), torch.from_numpy(g))
        for x, w, g in arrays
    ]
    products = jax.jit(
        lambda x, w, g: (
            x @ w,
            jnp.einsum("tn,mn->tm", g, w),
            jnp.einsum("tm,tn->mn", x, g),
        )
    )
    for group in ours:
        jax.block_until_ready(products(*group))  # compiles
    runs = {}
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        runs[f"ours {number}"] = lambda mine=mine: jax.block_until_ready(products(*mine))
        runs[f"torch {number}"] = lambda other=other: torch_products(*other)
    return runs


def torch_products(x: torch.Tensor, w: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Returns what `torch.nn.Linear` computes with a weight [outputs, inputs]."""
    return torch.nn.functional.linear(x, w), g @ w, g.T @ x


def product_seconds(llm: LlamaConfig, num_tokens: int, repeats: int) -> dict[str, float]:
    """Returns what all products of a step take in either library."""
    secs = median_seconds(make_products(llm, num_tokens), repeats)
    counts = [count for *_, count in product_shapes(llm)]
    return {
        name: sum(count * secs[f"{name} {number}"] for number, count in enumerate(counts))
        for name in ("ours", "torch")
    }


def print_times(model: ModelConfig, stage: StageConfig, batch: dict, repeats: int, runs: dict):
    """Measures both sides in turn and prints what came out, the goal last."""
    times = median_seconds(runs, repeats)
    counts = count_batch(batch, model.visual_tokens.num_tokens)
    flops = model_flops(model, counts, stage.trained, has_features=True)
    products = product_seconds(model.llm, batch["tokens"].size, repeats)
    print(f"\n{'median of ' + str(repeats):10s} {'step s':>8s} {'GFLOP/s':>8s}", end="")
    print(f" {'products alone s':>17s} {'share':>6s}")
    for name in ("torch", "ours"):
        print(
            f"{name:10s} {times[name]:8.3f} {flops / times[name] / 1e9:8.1f} "
            f"{products[name]:17.3f} {products[name] / times[name]:6.2f}"
        )
    ratio = times["ours"] / times["torch"]
    calibrated = ratio * products["torch"] / products["ours"]
    print(f"products alone, ours / torch: {products['ours'] / products['torch']:.2f}x")
    print(f"step, ours / torch, calibrated by the products: {calibrated:.2f}x")
    print_at_most("step, ours / torch (time)", ratio, GOAL)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model: shows that it runs")
    parser.add_argument("--repeats", type=int, default=10, help="of each measurement")
    parser.add_argument("--threads", type=int, default=None, help="of torch; all cores unless set")
    flags = parser.parse_args()
    if flags.threads:
        torch.set_num_threads(flags.threads)
    llm, length = (QUICK, 64) if flags.quick else (LLM, 512)
    # Blocks in a row, not in a loop: a few percent on a CPU, as the demos do.
    model = text_model(dataclasses.replace(llm, scan_unroll=llm.num_layers))
    tokens = np.random.default_rng(0).integers(0, llm.vocab_size, (2, length))
    params, stage = init_params(model, jax.random.key(0)), make_stage(*tokens.shape)
    theirs = TorchStep(llm, params["language_model"], tokens)
    ours, batch = OurStep(model, stage, params), text_batch(tokens, model)
    print_versions("jax", "flax", "torch", "transformers")
    print(f"torch threads {torch.get_num_threads()}, {jax.default_backend()}")
    runs = {"torch": theirs, "ours": lambda: ours(batch)["loss"]}
    check_losses(runs["ours"], theirs)
    print_times(model, stage, batch, 1 if flags.quick else flags.repeats, runs)


if __name__ == "__main__":
    main()
