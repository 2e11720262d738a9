"""The contact sheet: every picture, in reading order, large enough to see."""

import numpy as np

from metamorph_jax.visualizer.sheet import contact_sheet


def test_reading_order_and_scale():
    pictures = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (10, 20, 30)])
    sheet = contact_sheet(pictures, num_columns=2)
    assert sheet.shape == (2 * 66 + 2, 2 * 66 + 2, 3)
    assert [sheet[30, 30, 0], sheet[30, 100, 0], sheet[100, 30, 0]] == [10, 20, 30]
    assert sheet[100, 100, 0] == sheet[0, 0, 0] == 64  # free place, border


def test_large_pictures_stay_as_they_are():
    pictures = np.zeros((1, 128, 96, 3), np.uint8)
    assert contact_sheet(pictures).shape == (132, 100, 3)
