"""What our training step costs on a CPU with one setting or another.

    python benchmarks/step_settings.py [--quick] [--repeats=5]

The model and batch of `train_step.py`; CPU seconds of a step, all variants in turn, the least of
all turns: other programs only make it longer. The losses of the first step are asserted to agree.
"""

import argparse
import dataclasses
import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")


import jax.numpy as jnp
import numpy as np
from our_step import OurStep, text_batch, text_model
from timing import print_versions
from train_step import LLM, QUICK, SAME_LOSS, make_stage

from metamorph_jax.config.schema_model import LlamaConfig
from metamorph_jax.models import layers


def settings(llm: LlamaConfig) -> dict[str, tuple[dict, dict]]:
    """Returns changes of the decoder and of the loss by name."""
    unrolled = {"scan_unroll": llm.num_layers}
    return {
        "layers unrolled, no remat": (unrolled, {}),
        "unrolled, vocabulary in blocks of 4,096": (unrolled, {"vocab_chunk_size": 4096}),
        "unrolled, vocabulary all at once": (unrolled, {"vocab_chunk_size": llm.vocab_size}),
        "layers scanned": ({}, {}),
        "unrolled, remat='dots'": (unrolled | {"remat": "dots"}, {}),
        "unrolled, remat='full'": (unrolled | {"remat": "full"}, {}),
    }


def make_steps(llm: LlamaConfig, tokens: np.ndarray) -> dict[str, OurStep]:
    """Returns the step of each setting, compiled, after an update."""
    steps, losses = {}, {}

    def add(name: str, decoder: dict, loss: dict) -> None:
        model = text_model(dataclasses.replace(llm, **decoder))
        stage = make_stage(*tokens.shape)
        stage = dataclasses.replace(stage, loss=dataclasses.replace(stage.loss, **loss))
        steps[name] = OurStep(model, stage)
        losses[name] = steps[name](text_batch(tokens, model))["loss"]

    for name, changes in settings(llm).items():
        add(name, *changes)
    own = layers.linear
    try:
        layers.linear = jnp.tensordot
        add("unrolled, kernels' gradients as jax derives them", {"scan_unroll": llm.num_layers}, {})
    finally:
        layers.linear = own
    spread = max(losses.values()) - min(losses.values())
    print(f"parity  losses of the first step within {spread:.1e}")
    assert spread <= SAME_LOSS, losses
    return steps


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model: shows that it runs")
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement")
    flags = parser.parse_args()
    llm, length = (QUICK, 64) if flags.quick else (LLM, 512)
    tokens = np.random.default_rng(0).integers(0, llm.vocab_size, (2, length))
    print_versions("jax", "flax")
    steps = make_steps(llm, tokens)
    secs: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(1 if flags.quick else flags.repeats):
        for name, step in steps.items():
            batch, start = text_batch(tokens, step.model), time.process_time()
            step(batch)
            secs[name].append(time.process_time() - start)
    for name, values in secs.items():
        print(f"{name:50s} {min(values):7.3f} s of CPU")


if __name__ == "__main__":
    main()
