"""Transposed copies at a speed that does not hold up reading a checkpoint.

Kernels are transposed between torch and us. Copied element by element in the order of the result, a
matrix of 4096 columns misses the cache at every element, because its rows are a power of two apart.
"""

import itertools

import numpy as np

_STRIP = 16  # elements: at two bytes each half a cache line, and few enough lines to stay in it
_BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def contiguous(view: np.ndarray) -> np.ndarray:
    """Returns `view` as an array in C order; copies unless it is one."""
    if view.flags.c_contiguous:
        return view
    fast = int(np.argmin([abs(stride) if size > 1 else np.inf for stride, size in _axes(view)]))
    if fast == view.ndim - 1 or view.dtype.itemsize not in _BITS:
        return np.ascontiguousarray(view)
    result = np.empty(view.shape, view.dtype)
    source, target = (array.view(_BITS[view.dtype.itemsize]) for array in (view, result))
    others = [range(size) for axis, size in enumerate(view.shape[:-1]) if axis != fast]
    for place in itertools.product(*others):
        index = [*place[:fast], slice(None), *place[fast:]]
        for start in range(0, view.shape[-1], _STRIP):
            strip = (*index, slice(start, start + _STRIP))
            target[strip] = source[strip]
    return result


def _axes(view: np.ndarray) -> list[tuple[int, int]]:
    """Returns (stride, size) of each axis."""
    return list(zip(view.strides, view.shape, strict=True))
