"""A file of visual tokens -> PNG files, a list of them, and one sheet that shows them all.

    image_00000.png           or, with several of either, image_00000_seed3_guidance7.5.png
    contact_sheet.png         all of them; with several, one row per picture
    pictures.json             one entry per file: picture, seed, guidance, was it flagged

Every PNG says in its text how it came about. The painting itself is in painter.py.
"""

import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from metamorph_jax.errors import UserError
from metamorph_jax.typing import Float, Shaped
from metamorph_jax.visualizer.checkpoint import (
    EMA_FILE,
    WEIGHTS_FILE,
    load_visualizer,
    newest_intact,
)
from metamorph_jax.visualizer.dataset import (
    ENCODER,
    VISUAL_TOKENS,
    check_same_encoder,
    check_token_shape,
    read_tokens,
)
from metamorph_jax.visualizer.painter import Painted, Painter
from metamorph_jax.visualizer.sampling import load_safety
from metamorph_jax.visualizer.settings import DEFAULTS, PaintSettings
from metamorph_jax.visualizer.sheet import Row, captioned_sheet, contact_sheet

SHEET_FILE, LIST_FILE = "contact_sheet.png", "pictures.json"
# What a token file may say about where its tokens come from.
PROMPT, CHECKPOINT = "prompt", "checkpoint_fingerprint"
_NUM_SHOWN = 16  # hexadecimal digits of a fingerprint


def load_painter(
    folder: Path, settings: PaintSettings = DEFAULTS, *, use_safety_checker: bool = True
) -> Painter:
    """Returns what paints with the visualizer in `folder`.

    Args:
        folder: a run's folder or a checkpoint.
        settings: how.
        use_safety_checker: where the visualizer has one.

    Raises:
        UserError: it is missing or damaged, or a setting does not fit it.
    """
    visualizer = load_visualizer(folder)
    has_parts = visualizer.parts is not None and use_safety_checker
    safety = load_safety(visualizer.parts.folder) if has_parts else None
    return Painter(visualizer, settings, safety)


def paint_file(
    visualizer: Path,
    tokens: Path,
    out: Path,
    settings: PaintSettings = DEFAULTS,
    *,
    use_safety_checker: bool = True,
) -> list[Path]:
    """Paints all visual tokens in a file; returns the PNG files, without the contact sheet.

    Args:
        visualizer: a run's folder or a checkpoint.
        tokens: safetensors file with "visual_tokens" [n, P, E].
        out: folder, made when missing.
        settings: how to paint.
        use_safety_checker: where the visualizer has one.

    Raises:
        UserError: a file is missing, damaged or does not fit the visualizer.
    """
    painter = load_painter(visualizer, settings, use_safety_checker=use_safety_checker)
    values, metadata = read_tokens(tokens, VISUAL_TOKENS)
    check_tokens(painter, values, metadata, f"{tokens}", visualizer)
    origin = {name: metadata[name] for name in (PROMPT, CHECKPOINT) if name in metadata}
    origin["visualizer_fingerprint"] = fingerprint(visualizer)
    return write_pictures(painter, values, out, origin)


def check_tokens(
    painter: Painter,
    tokens: Float[Tensor, "count P E"],
    metadata: Mapping[str, str],
    file: str,
    visualizer: Path,
) -> None:
    """Raises a UserError if the visualizer paints other tokens than these."""
    model = painter.visualizer
    check_token_shape(tokens, model.config, file, f"the visualizer {visualizer}")
    check_same_encoder(metadata.get(ENCODER), model.encoder_fingerprint, file)


def fingerprint(visualizer: Path) -> str:
    """Returns the beginning of a SHA-256 of a visualizer's weights and moving averages."""
    folder = visualizer if (visualizer / WEIGHTS_FILE).is_file() else newest_intact(visualizer)
    digest = hashlib.sha256()
    for path in (folder / WEIGHTS_FILE, folder / EMA_FILE):
        if path.is_file():
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:_NUM_SHOWN]


def write_pictures(
    painter: Painter, tokens: Float[Tensor, "count P E"], out: Path, origin: Mapping[str, str]
) -> list[Path]:
    """Paints and writes every picture, the list and the contact sheet; returns the PNG files.

    Args:
        painter: and its settings.
        tokens: of the pictures.
        out: folder, made when missing.
        origin: goes into the text of every PNG, beside the settings.

    Raises:
        UserError: the folder cannot be written.
    """
    settings, count = painter.settings, len(tokens)
    how = {"steps": settings.num_steps, "scheduler": settings.scheduler, "dtype": settings.dtype}
    common = dict(origin) | {key: str(value) for key, value in how.items()}
    names_seed, names_guidance = len(settings.seeds) > 1, len(settings.guidance) > 1
    entries: list[dict[str, Any]] = []
    columns: dict[str, Shaped[np.ndarray, "count height width 3"]] = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for seed, guidance in itertools.product(settings.seeds, settings.guidance):
            painted = painter.paint(tokens, guidance, range(seed, seed + count))
            columns[f"seed {seed}, guidance {guidance:g}"] = painted.pictures
            suffix = f"_seed{seed}" * names_seed + f"_guidance{guidance:g}" * names_guidance
            said = {"seed": seed, "guidance": guidance}
            entries += _write_row(painted, out, suffix, said, common)
        Image.fromarray(_sheet(columns)).save(out / SHEET_FILE)
        (out / LIST_FILE).write_text(json.dumps(entries, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise UserError(f"{out}: pictures could not be written ({error})") from error
    return [out / entry["file"] for entry in entries]


def _sheet(columns: Mapping[str, Shaped[np.ndarray, "count height width 3"]]) -> np.ndarray:
    """Returns all pictures as one; where there are several of each, side by side."""
    if len(columns) == 1:
        return contact_sheet(*columns.values())
    pictures = zip(*columns.values(), strict=True)
    rows = [Row(list(p), [""] * len(p), f"picture {i}") for i, p in enumerate(pictures)]
    return captioned_sheet(list(columns), rows)


def _write_row(
    painted: Painted,
    out: Path,
    suffix: str,
    said: Mapping[str, Any],
    common: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Writes the pictures of one seed and guidance scale; returns their entries in the list."""
    entries = []
    for index, picture in enumerate(painted.pictures):
        name = f"image_{index:05d}{suffix}.png"
        own = dict(said) | {"seed": said["seed"] + index}
        write_png(out / name, picture, dict(common) | {key: str(own[key]) for key in own})
        flagged = bool(painted.is_flagged[index])
        entries.append({"file": name, "picture": index, **own, "flagged": flagged})
    return entries


def write_png(
    file: Path, picture: Shaped[np.ndarray, "height width 3"], text: Mapping[str, str]
) -> None:
    """Writes uint8 RGB pixels with what is to be known about them."""
    info = PngInfo()
    for key, value in text.items():
        info.add_itxt(key, value) if not value.isascii() else info.add_text(key, value)
    Image.fromarray(picture).save(file, pnginfo=info)
