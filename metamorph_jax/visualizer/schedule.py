"""Learning-rate multipliers of the visualizer: 0-based step -> factor of the peak rate.

The value at step s is what update number s + 1 uses, so the schedules that start at 0 make their
first update without effect, like the released code.
"""

import math
from collections.abc import Callable

from metamorph_jax.visualizer.schema import TrainingConfig

Multiplier = Callable[[int], float]


def log_warmup_linear(step: int, *, warmup_steps: int = 4000, total_steps: int = 16000) -> float:
    """Returns ln(s+1) / ln(warmup+1) up to `warmup_steps`, then a line down to 0 at `total_steps`.

    **Source:** MetaMorph's released visualizer training (4,000 and 16,000 steps, stopped near
    12,000); the paper has 2,000 and 14,000.
    """
    if step < warmup_steps:
        return math.log(step + 1) / math.log(warmup_steps + 1)
    return max(0.0, (total_steps - step) / (total_steps - warmup_steps))


def linear_warmup_constant(step: int, *, warmup_steps: int = 10_000) -> float:
    """Returns a line up to 1 at `warmup_steps`, then 1.

    **Source:** MetaMorph's released code, for a U-Net trained from scratch.
    """
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0


def cosine(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Returns a line up to 1 at `warmup_steps`, then half a cosine down to 0 at `total_steps`."""
    if step < warmup_steps:
        return step / warmup_steps
    done = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
    return 0.5 * (1.0 + math.cos(math.pi * done))


def make_multiplier(config: TrainingConfig) -> Multiplier:
    """Returns the schedule that the recipe names."""
    warmup, total = config.warmup_steps, config.total_steps
    match config.schedule:
        case "log_warmup_linear":
            return lambda step: log_warmup_linear(step, warmup_steps=warmup, total_steps=total)
        case "linear_warmup_constant":
            return lambda step: linear_warmup_constant(step, warmup_steps=warmup)
        case "cosine":
            return lambda step: cosine(step, warmup_steps=warmup, total_steps=total)
