import numpy as np

from metamorph_jax.data.keyed_random import random_bits, random_order


def test_numbers_never_change():
    """Pinned: other numbers would reorder the data of every run that resumes."""
    assert random_bits("0/vpit/0", 3).tolist() == PINNED_BITS
    assert random_order("0/vpit/0", 6).tolist() == PINNED_ORDER


def test_keys_draw_apart_and_prefixes_agree():
    np.testing.assert_array_equal(random_bits("a", 5)[:3], random_bits("a", 3))
    assert not np.array_equal(random_bits("a", 5), random_bits("b", 5))
    assert random_bits("a", 0).shape == (0,)


def test_order_is_a_permutation():
    order = random_order("key", 1000)
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert not np.array_equal(order, np.arange(1000))


PINNED_BITS = [6948941306794234085, 17912482573702411065, 6005537290298098988]
PINNED_ORDER = [4, 2, 0, 5, 3, 1]
