"""The reconstruction sheet: held-out pictures, painted again, and painted from predictions.

    original | painted from the encoder's tokens | painted from what the model predicts

The second column shows what the visualizer can do, the third what the model has learned; below each
stands the cosine between its tokens and the encoder's. `step_00000800.png` is for people,
`step_00000800.json` has the numbers. The tokens come from `metamorph_jax.predict_pictures`.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from metamorph_jax.data import image_files
from metamorph_jax.errors import UserError
from metamorph_jax.metrics.tensorboard import EventFile
from metamorph_jax.typing import Bool, Float, Shaped
from metamorph_jax.visualizer.dataset import read_tokens
from metamorph_jax.visualizer.painter import Painter
from metamorph_jax.visualizer.picture_files import CHECKPOINT, check_tokens, fingerprint, write_png
from metamorph_jax.visualizer.pictures import painted_square
from metamorph_jax.visualizer.sheet import Row, captioned_sheet

HEADINGS = ("original", "encoded, painted", "predicted, painted")
_ROWS_PER_LINE = 2
_MAX_SIDE = 256  # of a picture on the sheet, in pixels

Pictures = Shaped[np.ndarray, "count height width 3"]


@dataclasses.dataclass(frozen=True)
class PredictedTokens:
    """What `metamorph_jax.predict_pictures` wrote.

    Attributes:
        encoded: visual tokens of the pictures.
        predicted: those that the model predicted.
        has_picture: whether it did.
        images: the pictures' paths.
        prompts: what was asked.
        answers: the model's texts.
        metadata: of the file.
    """

    encoded: Float[Tensor, "count P E"]
    predicted: Float[Tensor, "count P E"]
    has_picture: Bool[np.ndarray, "count"]
    images: Sequence[Path]
    prompts: Sequence[str]
    answers: Sequence[str]
    metadata: dict[str, str]


def read_predictions(file: Path) -> PredictedTokens:
    """Returns the content of a predictions file.

    Raises:
        UserError: it is missing, damaged, or none.
    """
    encoded, metadata = read_tokens(file, "encoded")
    predicted, _ = read_tokens(file, "predicted")
    try:
        with safe_open(file, framework="numpy") as opened:
            has_picture = opened.get_tensor("has_picture").astype(bool)
        names, prompts, answers = (
            json.loads(metadata[key]) for key in ("images", "prompts", "answers")
        )
        root = Path(metadata["image_root"])
        counts = {len(x) for x in (encoded, predicted, has_picture, names, prompts, answers)}
        if len(counts) > 1:
            raise ValueError(f"lists of {sorted(counts)} entries")
    except Exception as error:  # a file of the user's: anything may be wrong with it
        raise UserError(
            f"{file}: no predictions ({type(error).__name__}: {error}); "
            "python -m metamorph_jax.predict_pictures writes them"
        ) from error
    images = [root / name for name in names]
    return PredictedTokens(encoded, predicted, has_picture, images, prompts, answers, metadata)


def reconstruct(
    painter: Painter, file: Path, visualizer: Path, out: Path
) -> tuple[Path, dict[str, Any]]:
    """Paints the sheet of a predictions file; returns the PNG file and the numbers.

    Args:
        painter: the first of its guidance scales and seeds is used.
        file: of predictions.
        visualizer: where the painter comes from.
        out: folder of the two files, made when missing.

    Raises:
        UserError: the predictions do not fit the visualizer, or a file cannot be read or written.
    """
    found = read_predictions(file)
    for tokens in (found.encoded, found.predicted):
        check_tokens(painter, tokens, found.metadata, f"{file}", visualizer)
    side, view = painter.settings.size, painter.visualizer.config.view
    originals = np.stack([read_square(path, side, view) for path in found.images])
    guidance, seed = painter.settings.guidance[0], painter.settings.seeds[0]
    seeds = range(seed, seed + len(originals))  # the same noise on both sides
    encoded = painter.paint(found.encoded, guidance, seeds).pictures
    predicted = painter.paint(found.predicted, guidance, seeds).pictures
    numbers = _numbers(found) | {
        "guidance": guidance,
        "steps": painter.settings.num_steps,
        "scheduler": painter.settings.scheduler,
        "dtype": painter.settings.dtype,
        "seed": seed,
        "visualizer_fingerprint": fingerprint(visualizer),
        CHECKPOINT: found.metadata.get(CHECKPOINT, ""),
    }
    sheet = _draw(found, numbers, originals, encoded, predicted)
    stem = f"step_{int(found.metadata.get('step', 0)):08d}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{stem}.json").write_text(json.dumps(numbers, indent=1) + "\n", "utf-8")
        text = {key: str(value) for key, value in numbers.items() if key != "pictures"}
        partial = out / f".{stem}.partial.png"  # who looks while it is written sees all or nothing
        write_png(partial, sheet, text)
        partial.replace(out / f"{stem}.png")
    except OSError as error:
        raise UserError(f"{out}: the sheet could not be written ({error})") from error
    return out / f"{stem}.png", numbers


def show_in_tensorboard(folder: Path, sheet: Path, numbers: dict[str, Any]) -> None:
    """Adds the sheet and its mean cosines to an event file of this process's own."""
    events = EventFile(folder)
    with Image.open(sheet) as opened:
        events.write_images(numbers["step"], {"pictures/sheet": np.asarray(opened)})
    names = {"mean_cosine": "cosine", "mean_picture_cosine": "cosine_of_mean_picture"}
    shown = {f"pictures/{names[key]}": numbers[key] for key in names if numbers[key] is not None}
    events.write_scalars(numbers["step"], shown)
    events.close()


def read_square(path: Path, side: int, view: str) -> Shaped[np.ndarray, "side side 3"]:
    """Returns an image file as a visualizer of this `view` would paint it, as uint8 RGB.

    Raises:
        UserError: it is missing or no image.
    """
    data = image_files.read_file(str(path.absolute()), "/", "predictions")
    return painted_square(image_files.decode(data, f"{path}"), side, view)


def cosine(
    tokens: Float[Tensor, "count P E"], others: Float[Tensor, "count P E"]
) -> Float[Tensor, "count"]:
    """Returns the mean over P of the cosine between corresponding visual tokens."""
    return torch.cosine_similarity(tokens, others, dim=-1).mean(dim=-1)


def _numbers(found: PredictedTokens) -> dict[str, Any]:
    """Returns what the sheet measures.

    A cosine alone says little, for all pictures have something in common: beside it stands what one
    gets by always predicting the mean of the pictures shown.
    """
    drawn = found.has_picture
    cosines = cosine(found.predicted, found.encoded).numpy()
    baseline = cosine(found.encoded.mean(0, keepdim=True).expand_as(found.encoded), found.encoded)
    rows = [
        {
            "image": str(image),
            "prompt": prompt,
            "answer": answer,
            "cosine": round(float(value), 6) if has else None,
        }
        for image, prompt, answer, value, has in zip(
            found.images, found.prompts, found.answers, cosines, drawn, strict=True
        )
    ]
    return {
        "step": int(found.metadata.get("step", 0)),
        "mean_cosine": round(float(cosines[drawn].mean()), 6) if drawn.any() else None,
        "mean_picture_cosine": round(float(baseline.mean()), 6),
        "num_drawn": int(drawn.sum()),
        "num_pictures": len(drawn),
        "pictures": rows,
    }


def _draw(
    found: PredictedTokens,
    numbers: dict[str, Any],
    originals: Pictures,
    encoded: Pictures,
    predicted: Pictures,
) -> Shaped[np.ndarray, "sheet_height sheet_width 3"]:
    """Returns the sheet."""
    rows = []
    for index, entry in enumerate(numbers["pictures"]):
        has = found.has_picture[index]
        pictures = [originals[index], encoded[index], predicted[index] if has else None]
        note = f"cosine {entry['cosine']:.3f}" if has else "no picture"
        notes = [found.images[index].name, "cosine 1", note]
        shown = [None if picture is None else _shrink(picture) for picture in pictures]
        rows.append(Row(shown, notes, entry["prompt"]))
    return captioned_sheet(HEADINGS, rows, _ROWS_PER_LINE)


def _shrink(picture: Shaped[np.ndarray, "height width 3"]) -> np.ndarray:
    """Returns a picture that is no larger than the sheet wants it."""
    if picture.shape[0] <= _MAX_SIDE:
        return picture
    return np.asarray(Image.fromarray(picture).resize((_MAX_SIDE, _MAX_SIDE)))
