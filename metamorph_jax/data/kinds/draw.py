"""Choices that are a pure function of a sample's key and a name."""

from collections.abc import Sequence
from typing import TypeVar

from metamorph_jax.data.keyed_random import random_bits, random_order

T = TypeVar("T")


class Draw:
    """Draws by name: the same key and name always give the same, whatever was drawn before.

    Args:
        key: of the sample.
    """

    def __init__(self, key: str):
        self._key = key

    def integer(self, name: str, low: int, high: int) -> int:
        """Returns a whole number from `low` to `high`, both included."""
        return low + int(random_bits(f"{self._key}/{name}", 1)[0]) % (high - low + 1)

    def uniform(self, name: str, low: float, high: float) -> float:
        """Returns a number from `low` to `high`."""
        return low + (high - low) * (int(random_bits(f"{self._key}/{name}", 1)[0]) / 2**64)

    def choice(self, name: str, options: Sequence[T]) -> T:
        """Returns one of some options."""
        return options[self.integer(name, 0, len(options) - 1)]

    def order(self, name: str, count: int) -> list[int]:
        """Returns 0 .. count - 1 in an order that is not theirs; `count` is at least 2."""
        order = random_order(f"{self._key}/{name}", count).tolist()
        if order == sorted(order):
            return [*order[1:], order[0]]
        return order
