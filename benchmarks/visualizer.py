"""How much faster the visualizer trains on kept features and latents than from pictures.

    python benchmarks/visualizer.py [--repeats=7] [--steps=4]

A tiny Stable Diffusion with random weights on the CPU, float32, the same trainer on both sides:

    live     every step decodes the pictures (JPEG, 320x240) and computes visual tokens and latents
    kept     both were computed before and are read from disk

Both sides take turns in this one run and train on the same batches with the same noise. What makes
the ratio count is checked: their losses are equal, step by step. How much can be saved depends on
the share of the frozen networks, so that is counted and printed, too; in Stable Diffusion 1.5 it
is 43 % (0.67 TFLOP of SigLIP and 1.12 of the autoencoder beside 2.41 a picture, counted alike).
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from random_diffusion import TINY, create_encoder, create_parts, run_config
from safetensors.torch import save_file
from timing import median_seconds, print_goal, print_versions
from torch.utils.flop_counter import FlopCounterMode

from metamorph_jax.config.loading import to_text
from metamorph_jax.visualizer.dataset import FeatureFiles
from metamorph_jax.visualizer.encoder import FrozenEncoder
from metamorph_jax.visualizer.feed import Feed, PictureData, Rows
from metamorph_jax.visualizer.latent_cache import build_cache
from metamorph_jax.visualizer.latents import create_latents
from metamorph_jax.visualizer.parts import Parts
from metamorph_jax.visualizer.pictures import Pictures, find_pictures, squashed
from metamorph_jax.visualizer.schema import VisualizerRunConfig
from metamorph_jax.visualizer.trainer import Trainer

GOAL = 1.5
NUM_PICTURES, BATCH_SIZE = 64, 8
# Losses of order 1: the frozen networks see other batches when features are kept (rounding 1e-7),
# and Adam turns what comes of it into 1e-6 a step.
TOLERANCE = 1e-4


def write_pictures(folder: Path) -> Pictures:
    """Writes pictures that a JPEG decoder has something to do with; returns them."""
    random = np.random.default_rng(0)
    for index in range(NUM_PICTURES):
        coarse = Image.fromarray(random.integers(0, 256, (15, 20, 3), np.uint8))
        coarse.resize((320, 240), Image.Resampling.BICUBIC).save(folder / f"{index:03d}.jpg")
    return find_pictures(folder, None)


def keep(
    folder: Path,
    pictures: Pictures,
    encoder: FrozenEncoder,
    parts: Parts,
    config: VisualizerRunConfig,
) -> PictureData:
    """Returns the data with visual tokens and latents computed before."""
    size = encoder.image_size
    seen = [torch.from_numpy(squashed(pictures.open(i), size).copy()) for i in range(NUM_PICTURES)]
    features = encoder(torch.stack(seen))
    names = [pictures.names[index] for index in range(NUM_PICTURES)]
    file = folder / "features.safetensors"
    save_file({"features": features}, file, {"images": str(names).replace("'", '"')})
    latents = config.model.latents
    codec = create_latents(latents, parts.vae)
    cache = build_cache(folder / "latents", pictures, codec, latents, "random")
    return PictureData(pictures, FeatureFiles([file], config.model), cache)


class Side:
    """A trainer and its data; remembers its losses."""

    def __init__(self, config: VisualizerRunConfig, data: PictureData, parts: Parts, encoder=None):
        self.trainer = Trainer(config, data, parts, encoder)
        self.batches = Feed(data, config).steps(0, config.training.total_steps)
        self.losses: list[float] = []

    def steps(self, count: int) -> None:
        """Makes some updates."""
        for _ in range(count):
            self.losses.append(self.trainer.update(next(self.batches))["loss"])


def count_flops(side: Side, rows: list[Rows]) -> tuple[int, int]:
    """Returns the FLOPs of (frozen networks, update) of one live step."""
    with FlopCounterMode(display=False) as frozen:
        tokens, latents = side.trainer.encode(rows[0])
    ready = rows[0]._replace(tokens=tokens, latents=latents, seen=None, squares=None)
    with FlopCounterMode(display=False) as update:
        side.trainer.update([ready])
    return frozen.get_total_flops(), update.get_total_flops()


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="of each measurement")
    parser.add_argument("--steps", type=int, default=4, help="updates in one measurement")
    parser.add_argument("--show_recipe", action="store_true", help="print the recipe, too")
    flags = parser.parse_args()
    config = run_config(TINY, BATCH_SIZE)
    if flags.show_recipe:
        print(to_text(config))
    print_versions("torch", "diffusers", "accelerate")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = write_pictures(folder)
        torch.manual_seed(0)
        parts = create_parts(TINY)
        encoder = create_encoder(folder / "export", TINY, config)
        kept_data = keep(folder, pictures, encoder, parts, config)
        live_data = PictureData(pictures, encoder_size=encoder.image_size)
        live = Side(config, live_data, parts, encoder)
        kept = Side(config, kept_data, parts)
        sides = {"live": live, "kept": kept}
        seconds = median_seconds(
            {name: lambda side=side: side.steps(flags.steps) for name, side in sides.items()},
            flags.repeats,
        )
        difference = max(abs(a - b) for a, b in zip(live.losses, kept.losses, strict=True))
        frozen, update = count_flops(live, next(live.batches))
    print(f"parity  {len(live.losses)} losses, live and kept  max |diff| {difference:.1e}")
    assert difference <= TOLERANCE, f"losses differ by more than {TOLERANCE}"
    share = frozen / (frozen + update)
    print(f"frozen networks have {share:.0%} of the FLOPs of a live step, so at most")
    print(f"{1 / (1 - share):.2f}x, and what decoding pictures takes, can be saved")
    for name, value in seconds.items():
        print(f"{name:58s} {flags.steps * BATCH_SIZE / value:9.1f} pictures/s")
    print_goal("kept against live", seconds["live"] / seconds["kept"], GOAL)


if __name__ == "__main__":
    main()
