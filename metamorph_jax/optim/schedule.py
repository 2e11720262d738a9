"""Learning-rate schedule: linear warm-up, cosine to zero, and the square-root batch rule."""

import math
from collections.abc import Callable

import jax.numpy as jnp

from metamorph_jax.config.schema_run import OptimizerConfig


def peak_learning_rate(config: OptimizerConfig, batch_size: int) -> float:
    """Returns the peak rate for a batch of `batch_size` examples.

    Source: metamorph.md 3.1, lr = 6.93e-5 * sqrt(B / 1536).
    """
    if config.reference_batch_size is None:
        return config.learning_rate
    return config.learning_rate * math.sqrt(batch_size / config.reference_batch_size)


def num_warmup_steps(config: OptimizerConfig, total_steps: int) -> int:
    """Returns the steps of linear warm-up: the ratio's share, rounded up."""
    return math.ceil(config.warmup_ratio * total_steps)


def cosine_multiplier(step, warmup_steps: int, total_steps: int):
    """Returns the factor of the peak rate at `step` (an int or an integer array), in [0, 1].

    The first update (step 0) has factor 0 when there is a warm-up.
    Source: HF transformers `get_cosine_schedule_with_warmup`, half a cosine.
    """
    step = jnp.asarray(step, jnp.float32)
    warmup = step / max(1, warmup_steps)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
    return jnp.where(step < warmup_steps, warmup, cosine)


def make_schedule(config: OptimizerConfig, total_steps: int, batch_size: int) -> Callable:
    """Returns step -> learning rate for a stage."""
    peak = peak_learning_rate(config, batch_size)
    warmup = num_warmup_steps(config, total_steps)
    return lambda step: peak * cosine_multiplier(step, warmup, total_steps)
