"""The section with the reconstruction sheets that were painted while a run trained, or after it.

`python -m metamorph_jax.visualizer.reconstruct` paints them (visualizer/reconstruction.py).
"""

import json
from pathlib import Path
from typing import Any

from metamorph_jax.report import page
from metamorph_jax.report.page import Html
from metamorph_jax.report.pictures import thumbnail

PICTURES_FOLDER = "pictures"
_SIDE = 1600  # pixels, at most


def sheets_sections(run: Path) -> list[tuple[str, Html]]:
    """Returns the section about a run's sheets; no section if it has none."""
    files = sorted((run / PICTURES_FOLDER).glob("step_*.json"))
    files = [file for file in files if file.with_suffix(".png").is_file()]
    if not files:
        return []
    sheets = {file: json.loads(file.read_text("utf-8")) for file in files}
    newest = files[-1]
    picture = page.image(thumbnail(newest.with_suffix(".png"), _SIDE), "reconstruction sheet")
    caption = (
        f"Step {sheets[newest]['step']}. Of each three: a held-out picture; what the visualizer "
        "paints from the tokens that the encoder makes of it; what it paints from the tokens that "
        "the model predicts after the prompt below. The second shows the best that the visualizer "
        "can do, the third what the model knows."
    )
    rows = [_row(numbers) for numbers in sheets.values()]
    header = ("step", "drawn", "mean cosine", "cosine of the mean picture")
    return [
        page.section(
            "Reconstruction",
            page.figure(picture, caption),
            page.table(header, rows),
            page.paragraph(
                "The cosine compares predicted tokens with the encoder's. All pictures have "
                "something in common, so look at what is above the last column: what predicting "
                "the mean of the pictures shown would reach."
            ),
        )
    ]


def _row(numbers: dict[str, Any]) -> tuple[str, ...]:
    """Returns the row of one sheet."""
    cosine = numbers["mean_cosine"]
    return (
        str(numbers["step"]),
        f"{numbers['num_drawn']} of {numbers['num_pictures']}",
        "" if cosine is None else f"{cosine:.3f}",
        f"{numbers['mean_picture_cosine']:.3f}",
    )
