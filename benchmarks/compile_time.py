"""How long a training step takes to compile with its blocks in a loop, and written out.

    python benchmarks/compile_time.py [--quick] [--repeats=3]

The same decoder of 32 layers with `llm.scan_unroll` 1 (a loop over stacked blocks, the default) and
32 (no loop). Lowering and compiling are timed apart, both without the cache on disk, the ways
taking turns. Widths hardly matter, so they are small; rows of 1,024 have attention in eight blocks,
as those of real runs do. That both programs are the same step is asserted: equal losses over three
steps.
"""

import argparse
import dataclasses
import os
import statistics
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from our_step import OurStep, text_batch, text_model
from timing import print_at_most, print_versions

from metamorph_jax.config.schema_model import LlamaConfig
from metamorph_jax.config.schema_run import DataConfig, LossConfig, OptimizerConfig, StageConfig

LLM = LlamaConfig(
    vocab_size=500,
    num_layers=32,
    num_heads=2,
    num_kv_heads=2,
    head_dim=32,
    embed_dim=64,
    mlp_dim=128,
)
NUM_ROWS, LENGTH, NUM_STEPS = 2, 1024, 3
SAME_LOSS, GOAL = 1e-5, 0.25
STAGE = StageConfig(
    name="bench",
    data=DataConfig(sources=(), max_seq_len=LENGTH),
    trained=("language_model",),
    optimizer=OptimizerConfig(learning_rate=1e-4),
    loss=LossConfig(visual_weight=0.0),
    total_steps=1000,
    global_batch_size=NUM_ROWS,
)


def compile_seconds(step: OurStep, batch: dict) -> tuple[float, float]:
    """Returns what lowering and compiling take; nothing of an earlier call is used again."""
    jax.clear_caches()
    with jax.set_mesh(step.mesh):
        start = time.perf_counter()
        lowered = step.step.lower(step.state, batch)
        middle = time.perf_counter()
        lowered.compile()
    return middle - start, time.perf_counter() - middle


def check_losses(steps: dict[str, OurStep], batch: dict) -> None:
    """Prints the losses of both programs; raises AssertionError if they differ."""
    for number in range(NUM_STEPS):
        scanned, unrolled = (step(batch)["loss"] for step in steps.values())
        difference = abs(scanned - unrolled)
        print(f"parity  loss of step {number}: {scanned:.6f}, |scan - unrolled| {difference:.1e}")
        assert difference <= SAME_LOSS, f"the losses differ by more than {SAME_LOSS}"


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 layers: shows that it runs")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement")
    flags = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    llm = dataclasses.replace(LLM, num_layers=4) if flags.quick else LLM
    length = 128 if flags.quick else LENGTH
    tokens = np.random.default_rng(0).integers(0, llm.vocab_size, (NUM_ROWS, length))
    batch, steps = None, {}
    for name, unroll in (("scan", 1), ("unrolled", llm.num_layers)):
        model = text_model(dataclasses.replace(llm, scan_unroll=unroll))
        batch, steps[name] = text_batch(tokens, model), OurStep(model, STAGE)
    print_versions("jax", "flax")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(1 if flags.quick else flags.repeats):
        for name, step in steps.items():
            times[name].append(compile_seconds(step, batch))
    check_losses(steps, batch)
    medians = {
        name: [statistics.median(column) for column in zip(*values, strict=True)]
        for name, values in times.items()
    }
    for name, (lowering, compiling) in medians.items():
        print(f"{name:10s} lowering {lowering:6.2f} s, compiling {compiling:6.2f} s")
    (scan_lower, scan), (unrolled_lower, unrolled) = medians["scan"], medians["unrolled"]
    print(f"lowering, scan / unrolled: {scan_lower / unrolled_lower:.2f}x")
    print_at_most(f"compiling {llm.num_layers} layers, scan / unrolled", scan / unrolled, GOAL)


if __name__ == "__main__":
    main()
