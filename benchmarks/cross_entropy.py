"""What the chunked cross-entropy over a large vocabulary costs, in memory and time.

    python benchmarks/cross_entropy.py [--quick] [--repeats=5]

Loss and gradients of hidden states and output table, float32, 128,256 entries, against all logits
at once, in one run:

    temporaries   what the two compiled programs need beside arguments and results
    head alone    their time. The backward pass computes the logits again: four products of the
                  head against three, a third more arithmetic; what reading and writing all logits
                  costs is on the other side
    whole step    what that comes to in a training step with an 8B model's proportions, where the
                  head is 7 % of all products: those of an MLP of this width are timed in the same
                  run, as many as weigh beside this head what 8B's blocks weigh beside its own.
                  This is the step time of the goal

    supervised    time with every fourth of 8,192 tokens an answer, against all of them

Losses and gradients of both are asserted to agree.
"""

import argparse
import os
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from timing import median_seconds, print_at_most, print_versions

from metamorph_jax.config.schema_run import LossConfig
from metamorph_jax.ops.cross_entropy import TableLayout, chunked_cross_entropy
from metamorph_jax.typing import Array, Float, Int

SAME_LOSS, SAME_GRADIENT = 1e-5, 1e-5  # absolute; relative L2
MOST_MEMORY, MOST_TIME, MOST_FOR_FOURTH = 0.1, 1.05, 0.3
# Of Llama-3.1-8B: entries of the matrices of all blocks, and of the head, that each token meets.
BLOCK_WEIGHTS, HEAD_WEIGHTS = 6.979e9, 0.525e9


def full_loss(
    hidden: Float[Array, "M D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "M"],
    weights: Float[Array, "M"],
) -> Float[Array, ""]:
    """Returns the weighted loss, from all logits at once."""
    logits = jnp.einsum("MD,DV->MV", hidden, head, preferred_element_type=jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return jnp.vdot(weights, jax.nn.logsumexp(logits, axis=-1) - chosen)


def chunked_loss(chunk_size: int) -> Callable[..., Float[Array, ""]]:
    """Returns the function of the same name as a training step has it."""

    def loss(hidden, head, targets, weights):
        layout = TableLayout(head.shape[1], chunk_size)
        losses = chunked_cross_entropy(hidden, head, targets, weights > 0, layout)
        return jnp.vdot(weights, losses)

    return loss


def make_inputs(num_tokens: int, width: int, vocab_size: int) -> tuple[Array, ...]:
    """Returns hidden states, table, targets and weights."""
    random = np.random.default_rng(0)
    hidden = random.normal(size=(num_tokens, width)).astype(np.float32)
    head = (random.normal(size=(width, vocab_size)) / width**0.5).astype(np.float32)
    targets = random.integers(0, vocab_size, num_tokens, np.int32)
    weights = np.full(num_tokens, 1 / num_tokens, np.float32)
    return jax.device_put((hidden, head, targets, weights))


def check_parity(full: tuple, chunked: tuple) -> None:
    """Prints how far (loss, gradients) are apart; raises AssertionError if it is too far."""
    difference = abs(float(full[0]) - float(chunked[0]))
    errors = [
        float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
        for a, b in zip(chunked[1], full[1], strict=True)
    ]
    print(f"parity  loss {float(full[0]):.6f}, |chunked - full| {difference:.1e}")
    print(f"parity  gradients of hidden states and table, relative L2 {max(errors):.1e}")
    assert difference <= SAME_LOSS and max(errors) <= SAME_GRADIENT, "the two losses differ"


def make_block(num_tokens: int, width: int) -> Callable[[], object]:
    """Returns a function that computes both passes of an MLP of this width.

    Its attribute `weights` is the number of entries of its matrices.
    """
    random = np.random.default_rng(1)
    sizes = [(width, 4 * width), (4 * width, width)]
    matrices = [(random.normal(size=s) / s[0] ** 0.5).astype(np.float32) for s in sizes]
    x = random.normal(size=(num_tokens, width)).astype(np.float32)
    arguments = jax.device_put((x, matrices))

    def total(x, matrices):
        return jnp.sum(jax.nn.silu(x @ matrices[0]) @ matrices[1])

    gradient = jax.jit(jax.grad(total, (0, 1)))

    def run():
        return jax.block_until_ready(gradient(*arguments))

    run.weights = sum(rows * columns for rows, columns in sizes)
    return run


def print_supervised_share(quick: bool, chunk_size: int, repeats: int) -> None:
    """Prints how the time goes with the number of tokens that count."""
    num_tokens, width, vocab_size = (4096, 16, 4096) if quick else (8192, 128, 128256)
    hidden, head, targets, every = make_inputs(num_tokens, width, vocab_size)
    fourth = jnp.where(jnp.arange(num_tokens) % 4 == 0, every, 0.0)
    gradient = jax.jit(jax.value_and_grad(chunked_loss(chunk_size), (0, 1)))
    runs = {
        name: lambda weights=weights: jax.block_until_ready(
            gradient(hidden, head, targets, weights)
        )
        for name, weights in {"all": every, "fourth": fourth}.items()
    }
    runs["all"](), runs["fourth"]()
    secs = median_seconds(runs, repeats)
    print(f"{num_tokens} tokens, width {width}: {secs['all']:.2f} s, {secs['fourth']:.2f} s")
    ratio = secs["fourth"] / secs["all"]
    print_at_most("every fourth token supervised / all", ratio, MOST_FOR_FOURTH)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few tokens: shows that it runs")
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement")
    parser.add_argument("--chunk_size", type=int, default=None, help="default: that of a recipe")
    flags = parser.parse_args()
    num_tokens, width, vocab_size = (32, 16, 4096) if flags.quick else (1024, 512, 128256)
    chunk_size = flags.chunk_size or (256 if flags.quick else LossConfig().vocab_chunk_size)
    arguments = make_inputs(num_tokens, width, vocab_size)
    print_versions("jax")
    print(f"{num_tokens} tokens, width {width}, {vocab_size} entries in blocks of {chunk_size}")
    losses = {"full": full_loss, "chunked": chunked_loss(chunk_size)}
    compiled = {
        name: jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arguments).compile()
        for name, loss in losses.items()
    }
    check_parity(*(compiled[name](*arguments) for name in ("full", "chunked")))
    size = {name: p.memory_analysis().temp_size_in_bytes for name, p in compiled.items()}
    print(f"temporaries: {size['full'] / 2**20:.0f} and {size['chunked'] / 2**20:.0f} MiB")
    print_at_most("temporaries, chunked / full", size["chunked"] / size["full"], MOST_MEMORY)
    block = make_block(num_tokens, width)
    block()
    runs = {
        name: lambda program=program: jax.block_until_ready(program(*arguments))
        for name, program in compiled.items()
    }
    secs = median_seconds(runs | {"block": block}, 1 if flags.quick else flags.repeats)
    print(f"seconds: full {secs['full']:.3f}, chunked {secs['chunked']:.3f}")
    print(f"head alone, chunked / full: {secs['chunked'] / secs['full']:.2f}x")
    # The rest of a step beside this head: as many of these blocks as 8B has weights beside its own.
    rest = secs["block"] * BLOCK_WEIGHTS / HEAD_WEIGHTS * width * vocab_size / block.weights
    ratio = (rest + secs["chunked"]) / (rest + secs["full"])
    print(
        f"head's share of a step with 8B's proportions: {secs['full'] / (rest + secs['full']):.1%}"
    )
    print_at_most("whole step with 8B's proportions, chunked / full", ratio, MOST_TIME)
    print_supervised_share(flags.quick, chunk_size, 1 if flags.quick else min(flags.repeats, 3))


if __name__ == "__main__":
    main()
