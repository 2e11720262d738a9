import ml_dtypes
import numpy as np
import pytest

from metamorph_jax.hub.copying import contiguous

AXES = [(0, 1, 2, 3), (3, 2, 1, 0), (1, 2, 0, 3), (3, 0, 1, 2), (2, 3, 1, 0), (0, 2, 1, 3)]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64, np.int8])
@pytest.mark.parametrize("axes", AXES)
def test_any_order_of_axes(axes, dtype):
    array = np.arange(3 * 17 * 40 * 2).reshape(3, 17, 40, 2).astype(dtype)
    view = array.transpose(axes)
    copy = contiguous(view)
    assert copy.flags.c_contiguous and copy.dtype == view.dtype
    np.testing.assert_array_equal(copy, view)


def test_parts_of_a_transposed_matrix():
    matrix = np.arange(50 * 33, dtype=np.uint16).reshape(50, 33).view(ml_dtypes.bfloat16)
    view = matrix.T[3:30, 7:49]
    np.testing.assert_array_equal(contiguous(view).view(np.uint16), view.view(np.uint16))
    assert contiguous(matrix) is matrix  # nothing to do
    assert contiguous(matrix[:0].T).shape == (33, 0)
    assert contiguous(matrix[:, :1].T).shape == (1, 50)
