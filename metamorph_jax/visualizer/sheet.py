"""Many pictures as one, for people to look at: the contact sheet, and one with captions."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from metamorph_jax.typing import Shaped

_GAP, _ROW_GAP = 2, 12  # pixels between pictures, and between rows beside each other
_BACKGROUND = 64  # grey that neither dark nor light pictures melt into
_INK, _MISSING = 235, 96
_MIN_SIDE = 64  # smaller pictures are enlarged, pixel by pixel, or nobody sees anything
_MIN_CAPTION_SIDE = 128  # room for a few words
_TEXT_SIZE, _LINE = 13, 17  # pixels
_MAX_CAPTION_LINES = 3

Picture = Shaped[np.ndarray, "height width 3"]


def contact_sheet(
    pictures: Shaped[np.ndarray, "count height width 3"], num_columns: int = 10
) -> Shaped[np.ndarray, "sheet_height sheet_width 3"]:
    """Returns the uint8 pictures in reading order, `num_columns` in a row."""
    num_columns = min(num_columns, len(pictures))
    large = [_enlarge(picture, _MIN_SIDE) for picture in pictures]
    return _grid([large[i : i + num_columns] for i in range(0, len(large), num_columns)])


class Row(NamedTuple):
    """A row of a captioned sheet.

    Attributes:
        pictures: uint8, all of one size; None: there is none.
        notes: one per picture, below it.
        caption: below them all.
    """

    pictures: Sequence[Picture | None]
    notes: Sequence[str]
    caption: str = ""


def captioned_sheet(
    headings: Sequence[str], rows: Sequence[Row], rows_per_line: int = 1
) -> Shaped[np.ndarray, "sheet_height sheet_width 3"]:
    """Returns rows of pictures with what there is to say about them.

    Args:
        headings: of the columns.
        rows: as many pictures each as there are headings.
        rows_per_line: rows beside each other.
    """
    shape = next(p.shape for row in rows for p in row.pictures if p is not None)
    has_notes = any(note for row in rows for note in row.notes)
    bodies = [_body(row, shape, has_notes=has_notes) for row in rows]
    lines = [_wrap(row.caption, bodies[0].shape[1]) for row in rows]
    height = max(map(len, lines))  # of all captions, for rows stand beside each other
    blocks = [
        _with_caption(body, said + [""] * (height - len(said)))
        for body, said in zip(bodies, lines, strict=True)
    ]
    width = (blocks[0].shape[1] - _ROW_GAP) // len(headings)
    head = np.concatenate([_text(heading, width) for heading in headings], axis=1)
    head = _pad(head, blocks[0].shape[1])
    rows_per_line = min(rows_per_line, len(blocks))
    lines = [[head] * rows_per_line]
    for start in range(0, len(blocks), rows_per_line):
        line = blocks[start : start + rows_per_line]
        lines.append(line + [np.full_like(blocks[0], _BACKGROUND)] * (rows_per_line - len(line)))
    return np.concatenate([np.concatenate(line, axis=1) for line in lines])


def _body(row: Row, shape: tuple[int, ...], *, has_notes: bool) -> Picture:
    """Returns pictures side by side, below each its note if the sheet has any."""
    tiles = [
        _enlarge(np.full(shape, _MISSING, np.uint8) if p is None else p, _MIN_CAPTION_SIDE)
        for p in row.pictures
    ]
    if has_notes:
        tiles = [
            np.concatenate([tile, _text(note, tile.shape[1])])
            for tile, note in zip(tiles, row.notes, strict=True)
        ]
    return _grid([tiles])


def _with_caption(body: Picture, lines: Sequence[str]) -> Picture:
    """Returns pictures with lines of text below, and the gap on the right."""
    block = np.concatenate([body, *(_text(line, body.shape[1]) for line in lines)])
    return _pad(block, block.shape[1] + _ROW_GAP)


def _wrap(text: str, width: int) -> list[str]:
    """Returns text in lines of at most `width` pixels; the last one holds what is left over."""
    font = ImageFont.load_default(_TEXT_SIZE)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        is_full = font.getlength(longer) > width - 2 * _GAP and lines[-1] != ""
        if is_full and len(lines) < _MAX_CAPTION_LINES:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _enlarge(picture: Picture, min_side: int) -> Picture:
    """Returns a picture whose shorter side has at least `min_side` pixels."""
    scale = math.ceil(min_side / min(picture.shape[:2]))
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def _grid(rows: Sequence[Sequence[Picture]]) -> Picture:
    """Returns pictures of one size in a grid; the last row may be shorter."""
    height, width, _ = rows[0][0].shape
    shape = (len(rows) * (height + _GAP) + _GAP, len(rows[0]) * (width + _GAP) + _GAP, 3)
    sheet = np.full(shape, _BACKGROUND, np.uint8)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            top, left = _GAP + row * (height + _GAP), _GAP + column * (width + _GAP)
            sheet[top : top + height, left : left + width] = picture
    return sheet


def _text(text: str, width: int) -> Picture:
    """Returns one line of text, cut with an ellipsis where it does not fit."""
    font = ImageFont.load_default(_TEXT_SIZE)
    text = " ".join(text.split())
    if font.getlength(text) > width - 2 * _GAP:
        while text and font.getlength(text + "...") > width - 2 * _GAP:
            text = text[:-1]
        text += "..."
    line = Image.new("RGB", (width, _LINE), (_BACKGROUND,) * 3)
    ImageDraw.Draw(line).text((_GAP, 0), text, fill=(_INK,) * 3, font=font)
    return np.asarray(line)


def _pad(picture: Picture, width: int) -> Picture:
    """Returns a picture with background on its right up to `width`."""
    return np.pad(
        picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=_BACKGROUND
    )
