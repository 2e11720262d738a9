"""The demo's data folder, as the report reads it: scans of a split, and requests for pictures.

The folder is written by `python -m metamorph_jax.data.digits`; its README names every file.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metamorph_jax.data.digits import shrink
from metamorph_jax.data.digits_texts import EDITS
from metamorph_jax.typing import Float, Integer, Shaped

_FILES = ("prompts.jsonl", "heldout_images.jsonl", "train_images.jsonl")
NUM_EDITS_PER_DIGIT = 10
EDIT_QUESTION = EDITS[0][0]


@dataclasses.dataclass(frozen=True)
class Scans:
    """Real scans of one split.

    Attributes:
        paths: relative to the data folder.
        pictures: uint8, as the model sees them.
        small: 8x8, intensities 0 to 1.
        digits: what they show.
        records: the file's lines, with `thickness` and `lean`.
    """

    paths: tuple[str, ...]
    pictures: Shaped[np.ndarray, "count height width 3"]
    small: Float[np.ndarray, "count 8 8"]
    digits: Integer[np.ndarray, "count"]
    records: tuple[Mapping[str, Any], ...]

    def of_digit(self, digit: int, count: int) -> list[int]:
        """Returns the indices of the first `count` scans of a digit."""
        return np.flatnonzero(self.digits == digit)[:count].tolist()


@dataclasses.dataclass(frozen=True)
class PictureRequest:
    """One request for a picture of a digit.

    Attributes:
        kind: "class" (the digit alone), "styled", or "edit" (the digit after the one shown).
        text: what the model is told.
        digit: what the picture should show.
        thickness: "thin", "bold" or "".
        lean: "leaning left", "leaning right" or "".
        image: that an edit starts from.
    """

    kind: str
    text: str
    digit: int
    thickness: str = ""
    lean: str = ""
    image: Path | None = None


def is_digits_folder(folder: Path) -> bool:
    """Returns whether the demo's data lies in `folder`."""
    return all((folder / name).is_file() for name in _FILES)


def load_scans(folder: Path, split: str) -> Scans:
    """Returns the scans of "train" or "heldout", in file order."""
    records = _read(folder / f"{split}_images.jsonl")
    pictures = [np.asarray(Image.open(folder / line["image"]).convert("RGB")) for line in records]
    return Scans(
        paths=tuple(line["image"] for line in records),
        pictures=np.stack(pictures),
        small=np.stack([shrink(picture) for picture in pictures]),
        digits=np.array([line["digit"] for line in records]),
        records=tuple(records),
    )


def load_requests(folder: Path, heldout: Scans) -> list[PictureRequest]:
    """Returns all requests: by class, by style, and for the digit after a held-out scan's."""
    requests = [
        PictureRequest(
            line["kind"],
            line["prompt"],
            line["digit"],
            line.get("thickness", ""),
            line.get("lean", ""),
        )
        for line in _read(folder / "prompts.jsonl")
    ]
    for digit in range(10):
        for index in heldout.of_digit(digit, NUM_EDITS_PER_DIGIT):
            image = folder / heldout.paths[index]
            requests.append(
                PictureRequest("edit", f"<image>\n{EDIT_QUESTION}", (digit + 1) % 10, image=image)
            )
    return requests


def matching_requests(scans: Scans, requests: Sequence[PictureRequest]) -> list[int]:
    """Returns, for each scan, the first request whose words describe it exactly."""
    by_words: dict[tuple, int] = {}
    for index, request in enumerate(requests):
        if request.kind != "edit":
            by_words.setdefault((request.digit, request.thickness, request.lean), index)
    return [by_words[line["digit"], line["thickness"], line["lean"]] for line in scans.records]


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
