"""Files that a run keeps beside it: arrays and texts that nobody ever sees half of."""

import os
import threading
from pathlib import Path

import numpy as np

from metamorph_jax.typing import Shaped

# Python 3.11 counts the depth of syntax trees for all threads together, and NumPy parses the header
# of a file as such a tree: two threads that do it at once may fail with a SystemError
# (github.com/python/cpython/issues/106905).
_PARSING = threading.Lock()


def open_array(path: Path) -> Shaped[np.ndarray, "..."]:
    """Returns an array that `save_array` kept, mapped into memory; threads may call it at once.

    Raises:
        OSError, ValueError: there is no such file, or it holds no array.
    """
    with _PARSING:
        return np.load(path, allow_pickle=False, mmap_mode="r")


def save_array(path: Path, array: Shaped[np.ndarray, "..."]) -> None:
    """Writes an array so that nobody ever sees half of it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with open(partial, "wb") as file:
        np.save(file, array, allow_pickle=False)
    partial.replace(path)


def save_text(path: Path, text: str) -> None:
    """Writes a text so that nobody ever sees half of it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)
