"""Sheets of pictures of shapes as PNG files beside the page: RUN/pictures/shapes_KIND.png.

In each row what was shown or wanted, and what is painted of the predicted visual tokens; below it
what of it is wrong. The page's own rows are in `shapes_sections.py`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from metamorph_jax.data.conversation import IMAGE_TAG
from metamorph_jax.report.shapes_scoring import ATTRIBUTES, Outcome
from metamorph_jax.typing import Shaped
from metamorph_jax.visualizer.sheet import Row, captioned_sheet

FOLDER = "pictures"
_NUM_IN_SHEET = 8
_ROWS_PER_LINE = 2
# Of the kinds that answer with one picture: the headings of what stands before the prediction.
_BEFORE = {
    "text_to_image": ("original", "encoded, painted"),
    "visual_thinking": ("shown", "the part asked about"),
    "image_to_image": ("shown", "original"),
}
Repaint = Callable[[Shaped[np.ndarray, "count height width 3"]], np.ndarray]


def write_sheets(run: Path, outcomes: Sequence[Outcome], repaint: Repaint) -> None:
    """Writes a sheet of each kind that answers with one picture; evenly spread, good or bad.

    Args:
        run: folder of the run.
        outcomes: of all kinds.
        repaint: paints pictures of their own visual tokens.
    """
    (run / FOLDER).mkdir(exist_ok=True)
    for kind, before in _BEFORE.items():
        cases = [outcome for outcome in outcomes if outcome.case.kind == kind]
        rows = [_row(outcome, repaint) for outcome in evenly_spread(cases, _NUM_IN_SHEET)]
        sheet = captioned_sheet((*before, "predicted, painted"), rows, _ROWS_PER_LINE)
        Image.fromarray(sheet).save(run / FOLDER / f"shapes_{kind}.png", optimize=True)


def evenly_spread(outcomes: Sequence[Outcome], count: int) -> list[Outcome]:
    """Returns some of the outcomes, all of different questions about different pictures."""
    cases = {}
    for outcome in outcomes:
        case = outcome.case
        pictures = tuple(picture.tobytes() for picture in (*case.prompt.images, *case.pictures))
        cases.setdefault((case.prompt.text, case.answer, pictures), outcome)
    different = list(cases.values())
    return different[:: max(1, len(different) // count)][:count]


def _row(outcome: Outcome, repaint: Repaint) -> Row:
    """Returns a case's line of the sheet."""
    case, (real, *_) = outcome.case, outcome.case.pictures
    if case.prompt.images:
        first, second = case.prompt.images[0], real
    else:
        first, second = real, repaint(real[None])[0]
    predicted = outcome.pictures[0] if len(outcome.pictures) else None
    asked = case.prompt.text.replace(IMAGE_TAG, "").strip()
    return Row((first, second, predicted), ("",) * 3, f"{asked} ({_verdict(outcome)})")


def _verdict(outcome: Outcome) -> str:
    """Returns what is wrong with the picture of an answer."""
    if not len(outcome.pictures):
        return "no picture"
    score, names = outcome.scores[0], ATTRIBUTES[outcome.case.kind][1:]
    wrong = [name for name in names if getattr(score, name) < 1]
    return f"wrong: {', '.join(wrong)}" if wrong else "right"
