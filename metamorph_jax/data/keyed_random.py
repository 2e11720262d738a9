"""Random numbers that are a pure function of a name, equal on every machine and in every process.

Sample order, fractional weights and image shifts are drawn here, keyed by strings such as
"0/vpit/order/3". Only raw generator output is used, which numpy promises not to change.
"""

import hashlib

import numpy as np

from metamorph_jax.typing import Integer


def random_bits(key: str, count: int) -> Integer[np.ndarray, "count"]:
    """Returns `count` uniform uint64 numbers that depend on nothing but the key."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    philox = np.random.Philox(key=np.frombuffer(digest[:16], "<u8"))
    return philox.random_raw(count).astype(np.uint64)


def random_order(key: str, count: int) -> Integer[np.ndarray, "count"]:
    """Returns a random permutation of 0 .. count - 1."""
    return np.argsort(random_bits(key, count), kind="stable")
