import numpy as np

from metamorph_jax.ops.masks import cache_mask, causal_segment_mask


def test_segments_are_causal_and_apart():
    mask = np.asarray(causal_segment_mask(np.array([[1, 1, 2, 2, 0]])))[0]
    expected = np.array(
        [
            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [0, 0, 1, 0, 0],
            [0, 0, 1, 1, 0],
            [0, 0, 0, 0, 0],
        ],
        bool,
    )
    np.testing.assert_array_equal(mask, expected)


def test_a_segment_number_used_again_is_the_same_segment():
    mask = np.asarray(causal_segment_mask(np.array([[1, 2, 1]])))[0]
    np.testing.assert_array_equal(mask[2], [True, False, True])


def test_cache_slots_are_causal_and_skip_padding():
    valid = np.array([[True, True, True, True, False], [False, True, True, True, False]])
    mask = np.asarray(cache_mask(valid, np.array(2), 2))
    np.testing.assert_array_equal(mask[0], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    np.testing.assert_array_equal(mask[1], [[0, 1, 1, 0, 0], [0, 1, 1, 1, 0]])
