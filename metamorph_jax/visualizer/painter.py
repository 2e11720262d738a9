"""Visual tokens -> pictures -> PNG files.

`paint` is what other code calls; the denoising loop is `diffusion.sample`.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from metamorph_jax.errors import UserError
from metamorph_jax.typing import Float, Shaped
from metamorph_jax.visualizer.checkpoint import load_visualizer
from metamorph_jax.visualizer.dataset import (
    ENCODER,
    VISUAL_TOKENS,
    check_same_encoder,
    check_token_shape,
    read_tokens,
)
from metamorph_jax.visualizer.diffusion import sample
from metamorph_jax.visualizer.latents import create_latents
from metamorph_jax.visualizer.model import Visualizer
from metamorph_jax.visualizer.sheet import contact_sheet

BATCH_SIZE = 64  # pictures at a time; larger ones are no faster on a CPU


def paint_file(
    visualizer: Path,
    tokens: Path,
    out: Path,
    *,
    guidance: float = 1.0,
    num_steps: int = 20,
    seed: int = 0,
) -> list[Path]:
    """Paints all visual tokens in a file; returns the PNG files, without the contact sheet.

    Args:
        visualizer: a run's folder or a checkpoint.
        tokens: safetensors file with "visual_tokens" [n, P, E].
        out: folder, made when missing.
        guidance: see `paint`.
        num_steps: denoising steps.
        seed: of picture 0; picture i has seed + i.

    Raises:
        UserError: a file is missing, damaged or does not fit the visualizer.
    """
    model = load_visualizer(visualizer)
    values, metadata = read_tokens(tokens, VISUAL_TOKENS)
    check_token_shape(values, model.config, f"{tokens}", f"the visualizer {visualizer}")
    check_same_encoder(metadata.get(ENCODER), model.encoder_fingerprint, f"{tokens}")
    pictures = paint(model, values, guidance=guidance, num_steps=num_steps, seed=seed)
    settings = {"guidance": str(guidance), "steps": str(num_steps)}
    return write_pictures(pictures, out, settings, seed)


def paint(
    visualizer: Visualizer,
    tokens: Float[Tensor, "count P E"],
    *,
    guidance: float = 1.0,
    num_steps: int = 20,
    seed: int = 0,
) -> Shaped[np.ndarray, "count height width 3"]:
    """Returns uint8 RGB pictures, one per block of visual tokens.

    Args:
        visualizer: from `checkpoint.load_visualizer`.
        tokens: visual tokens, L2-normalised as the encoder makes them.
        guidance: classifier-free guidance; 1 follows the tokens, more exaggerates them.
        num_steps: denoising steps, at most the noise process's own.
        seed: picture i starts from noise of seed + i, whatever else is painted with it.

    Raises:
        UserError: `num_steps` or `guidance` is out of range.
    """
    most = visualizer.config.diffusion.num_train_timesteps
    if not 1 <= num_steps <= most:
        raise UserError(f"steps={num_steps}: from 1 to {most} were expected")
    if guidance < 0:
        raise UserError(f"guidance={guidance}: 1 or more was expected (0 ignores the tokens)")
    latents = create_latents(visualizer.config.latents)
    batches = []
    for start in range(0, len(tokens), BATCH_SIZE):
        rows = tokens[start : start + BATCH_SIZE]
        seeds = range(seed + start, seed + start + len(rows))
        painted = sample(visualizer, rows, guidance=guidance, num_steps=num_steps, seeds=seeds)
        batches.append(latents.decode(painted).numpy())
    return np.concatenate(batches)


def write_pictures(
    pictures: Shaped[np.ndarray, "count height width 3"],
    out: Path,
    settings: dict[str, str],
    seed: int,
) -> list[Path]:
    """Writes numbered PNG files, with `settings` and the seed in each, and a contact sheet.

    Raises:
        UserError: the folder cannot be written.
    """
    files = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for index, picture in enumerate(pictures):
            info = PngInfo()
            for key, value in (settings | {"seed": str(seed + index)}).items():
                info.add_text(key, value)
            files.append(out / f"image_{index:05d}.png")
            Image.fromarray(picture).save(files[-1], pnginfo=info)
        Image.fromarray(contact_sheet(pictures)).save(out / "contact_sheet.png")
    except OSError as error:
        raise UserError(f"{out}: pictures could not be written ({error})") from error
    return files
