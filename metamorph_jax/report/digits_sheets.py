"""Sheets of the demo's pictures: by class, by style, after another digit, and painted again.

A red frame always means the same: read as another digit than was asked for, or no picture at all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from metamorph_jax.data.digits_texts import WORDS
from metamorph_jax.report import page, pictures
from metamorph_jax.report.digits_data import EDIT_QUESTION, Scans
from metamorph_jax.report.digits_results import Drawn, Painted, Picture
from metamorph_jax.report.numbers import percent
from metamorph_jax.report.page import Html

_NUM_PER_ROW = 10
_NUM_RECONSTRUCTED = 16
_NUM_EDITS = 5
_STYLES = [  # from left to right: thin to bold, and within these left to right
    (thickness, lean)
    for thickness in ("thin", "", "bold")
    for lean in ("leaning left", "", "leaning right")
]


def class_prompts_figure(drawn: Drawn, painted: Painted, heldout: Scans) -> Html:
    """Returns drawn pictures beside real ones, one row per digit."""
    rows = []
    for digit in range(10):
        mine = [i for i in drawn.of_kind("class") if drawn.requests[i].digit == digit]
        real = [heldout.pictures[i] for i in heldout.of_digit(digit, _NUM_PER_ROW)]
        rows.append((WORDS[digit], _row(drawn, painted, mine[:_NUM_PER_ROW]), _strip(real)))
    return page.figure(
        page.table(("", "drawn by the model", "real held-out scans"), rows, class_="sheet"),
        "Ten wordings of “draw a …” per digit, each painted from its own noise. A red frame: the "
        "picture is read as another digit, or there is none. Look for pictures that are alike "
        "within a row although the wording and the noise differ: the prompt names only the digit, "
        "so the model answers with the average of what it saw.",
    )


def styled_figure(drawn: Drawn, painted: Painted) -> Html:
    """Returns pictures by style words, one row per digit."""
    columns: dict[tuple[str, str], list[int]] = {}
    for index in drawn.of_kind("styled"):
        request = drawn.requests[index]
        columns.setdefault((request.thickness, request.lean), []).append(index)
    columns = {style: columns[style] for style in _STYLES if style in columns}
    names = [", ".join(filter(None, style)) for style in columns]
    rows = [
        (WORDS[digit], *(_row(drawn, painted, [column[digit]]) for column in columns.values()))
        for digit in range(10)
    ]
    return page.figure(
        page.table(("", *names), rows, class_="sheet"),
        "The same digit asked for in different styles. Compare “thin” with “bold” in a row, and "
        "“leaning left” with “leaning right”.",
    )


def edits_figure(drawn: Drawn, painted: Painted) -> Html:
    """Returns pairs of a held-out scan and the picture drawn for the digit after it."""
    rows = []
    for digit in range(10):
        chosen = [i for i in drawn.of_kind("edit") if drawn.requests[i].digit == (digit + 1) % 10]
        cells = [
            page.image(
                pictures.data_uri(
                    pictures.row(
                        [_scan(drawn, i), _picture(drawn, painted, i)],
                        [False, _is_wrong(drawn, painted, i)],
                    )
                ),
                f"a {WORDS[digit]} and what was drawn after it",
            )
            for i in chosen[:_NUM_EDITS]
        ]
        rows.append((f"{WORDS[digit]} → {WORDS[(digit + 1) % 10]}", *cells))
    return page.figure(
        page.table((), rows, class_="sheet"),
        f"“{EDIT_QUESTION}” Left of each pair: the held-out scan that was given; right: what the "
        "model drew.",
    )


def reconstruction_figure(
    reconstructed: Painted, heldout: Scans, summary: Mapping[str, Any]
) -> Html:
    """Returns held-out scans above the pictures painted from their own tokens."""
    rows = []
    for digit in range(10):
        chosen = heldout.of_digit(digit, _NUM_RECONSTRUCTED)
        wrong = [reconstructed.read[i] != digit for i in chosen]
        original = pictures.row([heldout.pictures[i] for i in chosen])
        again = pictures.row([reconstructed.pictures[i] for i in chosen], wrong)
        sheet = pictures.data_uri(pictures.stack([original, again]))
        rows.append((WORDS[digit], page.image(sheet, f"scans of {WORDS[digit]} and repaintings")))
    return page.figure(
        page.table((), rows, class_="sheet"),
        "Upper rows: held-out scans. Lower rows: painted from the visual tokens that the frozen "
        "encoder makes of them; the language model has no part in this. It shows what the tokens "
        f"keep. Recognised: {percent(summary['reconstruction_accuracy'])}; mean squared pixel "
        f"error at 8x8: {summary['reconstruction_mse']:.4f}. A red frame: read as another digit.",
    )


def _is_wrong(drawn: Drawn, painted: Painted, index: int) -> bool:
    is_other = painted.read[index] != drawn.requests[index].digit
    return bool(is_other or not drawn.well_formed[index])


def _picture(drawn: Drawn, painted: Painted, index: int) -> Picture | None:
    return painted.pictures[index] if drawn.well_formed[index] else None


def _scan(drawn: Drawn, index: int) -> Picture:
    """Returns the scan that an edit starts from."""
    return np.asarray(Image.open(drawn.requests[index].image).convert("RGB"))


def _row(drawn: Drawn, painted: Painted, indices: Sequence[int]) -> Html:
    """Returns pictures side by side, framed where they are not what was asked for."""
    wrong = [_is_wrong(drawn, painted, index) for index in indices]
    sheet = pictures.row([_picture(drawn, painted, index) for index in indices], wrong)
    return page.image(pictures.data_uri(sheet), "pictures drawn by the model")


def _strip(real: Sequence[Picture]) -> Html:
    return page.image(pictures.data_uri(pictures.row(real)), "real scans")
