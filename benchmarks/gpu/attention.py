"""Attention over packed rows against unsegmented causal attention of cuDNN, at equal tokens.

    python benchmarks/gpu/attention.py [--length=4096] [--segments=8] [--json=FILE] [--quick]

Both passes, bfloat16, 32 query and 8 key/value heads of 128, one row: ours with segments (the
function that the decoder trains with, `common.packed_attention`) against
`jax.nn.dot_product_attention(implementation="cudnn", is_causal=True)`, which knows no segments.
TFLOP/s count what each is asked for: half of sum(length^2), and half of the whole square. Asserted
beside it: changing every number of the first segment changes not one bit of the others' results and
gradients, and one segment alone gives what cuDNN gives. Goal: 0.9x its time or better.
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import goal, packed_attention, report
from timing import median_seconds

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
MIN_RATIO = 0.9
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}  # of values of order 1


def make_inputs(length: int, heads: int, kv_heads: int, dtype: str) -> tuple[jax.Array, ...]:
    """Returns query, key, value and an incoming gradient of one row."""
    random = np.random.default_rng(0)
    return tuple(
        jnp.asarray(random.normal(size=(1, length, number, HEAD_DIM)), dtype)
        for number in (heads, kv_heads, kv_heads, heads)
    )


def make_segments(length: int, count: int) -> jax.Array:
    """Returns segment ids of unequal lengths, [1, T], without padding."""
    borders = np.sort(np.random.default_rng(1).choice(np.arange(1, length), count - 1, False))
    return jnp.asarray(1 + np.searchsorted(borders, np.arange(length), side="right"))[None, :]


def both_passes(function):
    """Returns a jitted (query, key, value, gradient) -> (result, three gradients)."""

    def run(query, key, value, gradient):
        result, pull_back = jax.vjp(function, query, key, value)
        return result, *pull_back(gradient)

    return jax.jit(run)


def make_functions(segments: jax.Array, on_gpu: bool):
    """Returns ours with these segments, ours with one segment, and the unsegmented one."""
    ours, library = packed_attention(), "cudnn" if on_gpu else "xla"
    whole = jnp.ones_like(segments)
    return (
        both_passes(lambda q, k, v: ours(q, k, v, segments)),
        both_passes(lambda q, k, v: ours(q, k, v, whole)),
        both_passes(
            lambda q, k, v: jax.nn.dot_product_attention(
                q, k, v, is_causal=True, implementation=library
            )
        ),
    )


def check_leaks(packed, inputs: tuple, segments: jax.Array) -> None:
    """Raises AssertionError if the first segment has any influence on the others."""
    first = (segments == 1)[:, :, None, None]
    other = tuple(jnp.where(first, 3 * array[:, ::-1] + 1, array) for array in inputs)
    for before, after in zip(packed(*inputs), packed(*other), strict=True):
        rest = ~np.asarray(segments == 1)[0]
        same = np.array_equal(np.asarray(before)[0, rest], np.asarray(after)[0, rest])
        assert same, "the first segment leaks into another one"


def largest_difference(ours: tuple, theirs: tuple, tolerance: float) -> float:
    """Returns how far results and gradients are apart, relative to the largest of each."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        worst = max(worst, float(jnp.abs(a - b).max() / jnp.abs(b).max()))
    assert worst <= tolerance, f"one segment differs from unsegmented attention by {worst}"
    return worst


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=4096, help="positions of the row")
    parser.add_argument("--segments", type=int, default=8, help="samples in the row")
    parser.add_argument("--repeats", type=int, default=30, help="of each measurement")
    parser.add_argument("--quick", action="store_true", help="small, without accelerator")
    parser.add_argument("--json", type=Path, help="file for the results")
    flags = parser.parse_args()
    on_gpu = jax.default_backend() == "gpu"
    if not on_gpu and not flags.quick:
        sys.exit(f"this needs a GPU, jax has {jax.default_backend()}; --quick runs anywhere")
    length, dtype = (192, "float32") if flags.quick else (flags.length, "bfloat16")
    heads, kv_heads = (4, 2) if flags.quick else (HEADS, KV_HEADS)
    inputs = make_inputs(length, heads, kv_heads, dtype)
    segments = make_segments(length, 3 if flags.quick else flags.segments)
    packed, whole, library = make_functions(segments, on_gpu)
    check_leaks(packed, inputs, segments)
    difference = largest_difference(whole(*inputs), library(*inputs), TOLERANCE[dtype])
    names = {"packed": packed, "one segment": whole, "unsegmented": library}
    runs = {
        name: lambda function=function: jax.block_until_ready(function(*inputs))
        for name, function in names.items()
    }
    secs = median_seconds(runs, 2 if flags.quick else flags.repeats)
    squares = float((np.unique(np.asarray(segments), return_counts=True)[1] ** 2).sum())
    # Two products forwards and four backwards of half the square each, 2 FLOPs a multiply-add.
    flops = {name: 6.0 * heads * HEAD_DIM * length**2 for name in names} | {
        "packed": 6.0 * heads * HEAD_DIM * squares
    }
    results = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "length": length}
    results["leak"] = "none, bit by bit"
    results["parity: one segment, largest relative difference"] = difference
    for name, value in secs.items():
        results[f"{name}: ms"] = 1e3 * value
        results[f"{name}: TFLOP/s"] = flops[name] / value / 1e12
    ratio = secs["unsegmented"] / secs["packed"]
    results["ratio of speed, packed / unsegmented"] = ratio
    results["goal: ratio"] = goal(ratio, MIN_RATIO, flags.quick)
    report(results, flags.json)


if __name__ == "__main__":
    main()
