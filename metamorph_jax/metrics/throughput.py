"""Rates of a running loop from host timestamps, and the peak that MFU is measured against.

How many FLOPs a step is worth is counted in `flops.py`; peaks of chips are in `chips.py`.
"""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

from metamorph_jax.metrics.chips import chip_of_kind


def peak_flops_per_device(device_kind: str) -> float | None:
    """Returns the dense bf16 FLOP/s of a device, None when it is not in the table.

    Args:
        device_kind: as `jax.devices()[0].device_kind` says ("NVIDIA H200", "TPU v5 lite").
    """
    chip = chip_of_kind(device_kind)
    return chip.peak_flops if chip else None


def measured_float32_matmul_flops(size: int = 1024, num_repeats: int = 5) -> float:
    """Returns the FLOP/s of a float32 matrix product on the default device, best of some runs.

    Stands in for a data-sheet peak where there is none (a CPU): "MFU" against it says how much of
    what this machine's matrix product reaches the step reaches. Takes about 0.2 s.
    """
    import jax
    import jax.numpy as jnp

    product = jax.jit(lambda x: jnp.dot(x, x, precision=jax.lax.Precision.HIGHEST))
    matrix = jnp.ones((size, size), jnp.float32)
    product(matrix).block_until_ready()
    best = float("inf")
    for _ in range(num_repeats):
        start = time.perf_counter()
        product(matrix).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


class StepTimer:
    """Rates over the last steps: throughput, MFU and the share of time spent waiting for data.

    The first step after a `reset` only starts the clock, so compilation never counts.

    Args:
        peak_flops: of all devices together; None leaves MFU out.
        window: steps that a rate is averaged over.
        clock: seconds; replaced in tests.
    """

    def __init__(
        self,
        peak_flops: float | None = None,
        window: int = 20,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._peak_flops = peak_flops
        self._clock = clock
        self._steps = collections.deque(maxlen=window + 1)
        self._waited = 0.0

    def reset(self) -> None:
        """Forgets all steps, at the start of a stage or after a pause."""
        self._steps.clear()
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the seconds of the body as waiting for data."""
        start = self._clock()
        yield
        self._waited += self._clock() - start

    def step(
        self,
        *,
        num_positions: int = 0,
        num_tokens: int = 0,
        num_images: int = 0,
        flops: float = 0.0,
    ) -> None:
        """Marks the end of a step that processed this much (`num_tokens`: without padding)."""
        work = (num_positions, num_tokens, num_images, flops)
        self._steps.append((self._clock(), *work, self._waited))
        self._waited = 0.0

    def rates(self) -> dict[str, float]:
        """Returns step_secs, tokens_per_sec, images_per_sec, data_wait_fraction and others.

        `tokens_per_sec` counts all positions of rows, padding too, `useful_tokens_per_sec` those
        that are not padding. Empty until two steps were marked; `mfu` is there if a peak is known.
        """
        if len(self._steps) < 2:
            return {}
        steps = list(self._steps)
        seconds = max(steps[-1][0] - steps[0][0], 1e-9)  # a clock may tick coarsely
        positions, tokens, images, flops, waited = (
            sum(step[column] for step in steps[1:]) for column in range(1, 6)
        )
        rates = {
            "step_secs": seconds / (len(steps) - 1),
            "tokens_per_sec": positions / seconds,
            "useful_tokens_per_sec": tokens / seconds,
            "images_per_sec": images / seconds,
            "data_wait_fraction": min(waited / seconds, 1.0),
        }
        if self._peak_flops:
            rates["mfu"] = flops / seconds / self._peak_flops
        return rates


def rates_in_words(rates: Mapping[str, float]) -> str:
    """Returns the rates of a `StepTimer` for a line on the terminal; "" if there are none yet."""
    if "step_secs" not in rates:
        return ""
    fraction = rates["useful_tokens_per_sec"] / max(rates["tokens_per_sec"], 1e-9)
    parts = [
        f"{_short(rates['tokens_per_sec'])} tokens/s ({fraction:.0%} useful)",
        f"{_short(rates['images_per_sec'])} images/s",
    ]
    if "mfu" in rates:
        parts.append(f"MFU {rates['mfu']:.0%}")
    return ", ".join([*parts, f"{rates['data_wait_fraction']:.0%} waiting for data"])


def _short(number: float) -> str:
    return f"{number / 1000:.3g}k" if number >= 1000 else f"{number:.3g}"
