"""Which pictures a step trains on, and where its randomness comes from.

Both are pure functions of (seed, step) and of a row's place in the batch: neither the number of
processes nor what a process did before matters, and resuming needs no state but the step.
"""

import functools

import numpy as np
import torch
from torch import Tensor

from metamorph_jax.typing import Int

_ORDER_STREAM, _NOISE_STREAM = 0, 1


def batch_indices(count: int, seed: int, step: int, batch_size: int) -> Int[Tensor, "B"]:
    """Returns which of `count` pictures step `step` trains on: shuffled epochs, back to back."""
    wanted = range(step * batch_size, (step + 1) * batch_size)
    first_epoch, last_epoch = wanted.start // count, (wanted.stop - 1) // count
    orders = [_epoch_order(count, seed, epoch) for epoch in range(first_epoch, last_epoch + 1)]
    offset = wanted.start - first_epoch * count
    return torch.cat(orders)[offset : offset + batch_size]


def row_generator(seed: int, step: int, row: int) -> torch.Generator:
    """Returns the generator that draws everything random about one row of a step's batch."""
    return make_generator(seed, _NOISE_STREAM, step, row)


def make_generator(*numbers: int) -> torch.Generator:
    """Returns a generator whose seed mixes all the numbers."""
    (seed,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(seed))


@functools.lru_cache(maxsize=2)  # a batch may begin in one epoch and end in the next
def _epoch_order(count: int, seed: int, epoch: int) -> Int[Tensor, "count"]:
    return torch.randperm(count, generator=make_generator(seed, _ORDER_STREAM, epoch))
