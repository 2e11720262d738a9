"""The contact sheet: every picture, in reading order, large enough to see."""

import numpy as np

from metamorph_jax.visualizer.sheet import Row, captioned_sheet, contact_sheet


def test_reading_order_and_scale():
    pictures = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (10, 20, 30)])
    sheet = contact_sheet(pictures, num_columns=2)
    assert sheet.shape == (2 * 66 + 2, 2 * 66 + 2, 3)
    assert [sheet[30, 30, 0], sheet[30, 100, 0], sheet[100, 30, 0]] == [10, 20, 30]
    assert sheet[100, 100, 0] == sheet[0, 0, 0] == 64  # free place, border


def test_large_pictures_stay_as_they_are():
    pictures = np.zeros((1, 128, 96, 3), np.uint8)
    assert contact_sheet(pictures).shape == (132, 100, 3)


def test_captions_are_below_their_pictures():
    pictures = [np.full((8, 8, 3), value, np.uint8) for value in (10, 200)]
    rows = [Row([pictures[0], None], ["one", "none"], "first"), Row(pictures, ["", ""], "")]
    sheet = captioned_sheet(["left", "right"], rows)
    head, block = 17, 2 + 128 + 17 + 2 + 17
    assert sheet.shape == (head + 2 * block, 2 * 130 + 2 + 12, 3)
    assert sheet[head + 50, 50, 0] == 10
    assert sheet[head + 50, 200, 0] == 96  # there is no picture
    assert sheet[head + block + 50, 200, 0] == 200
    ink = sheet == sheet.max()
    for top, has_text in (
        (0, True),
        (head + 130, True),
        (head + 149, True),
        (head + block + 130, False),
    ):
        assert ink[top : top + 17].any() == has_text


def test_no_line_is_left_free_for_notes_that_nobody_wrote():
    sheet = captioned_sheet(["x"], [Row([np.zeros((8, 8, 3), np.uint8)], [""], "word")])
    assert sheet.shape[0] == 17 + 2 + 128 + 2 + 17


def test_long_captions_have_three_lines_at_most():
    picture = np.zeros((8, 8, 3), np.uint8)
    short, long, longest = (
        captioned_sheet(["x"], [Row([picture], ["n"], "word " * n)] * 2) for n in (3, 9, 300)
    )
    assert long.shape == longest.shape
    assert long.shape[0] == short.shape[0] + 2 * 2 * 17
    np.testing.assert_array_equal(longest[-17 * 3 : -17], long[-17 * 3 : -17])
    assert (longest[-17:] != long[-17:]).any()  # ends with an ellipsis


def test_rows_beside_each_other_have_captions_of_one_height():
    pictures = [np.zeros((8, 8, 3), np.uint8)]
    rows = [Row(pictures, ["n"], "word"), Row(pictures, ["n"], "word " * 9)]
    sheet = captioned_sheet(["x"], rows, rows_per_line=2)
    assert sheet.shape == (17 + 2 + 128 + 17 + 2 + 3 * 17, 2 * (132 + 12), 3)


def test_rows_stand_beside_each_other():
    row = Row([np.zeros((128, 128, 3), np.uint8)], ["a"], "b")
    one, two = (captioned_sheet(["x"], [row] * 3, rows_per_line=n) for n in (1, 2))
    assert two.shape[1] == 2 * one.shape[1]
    assert two.shape[0] - 17 == (one.shape[0] - 17) * 2 // 3
