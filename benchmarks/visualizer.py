"""How much faster the visualizer trains on kept features and latents than from pictures.

    python benchmarks/visualizer.py [--repeats=7] [--steps=2]

A tiny Stable Diffusion with random weights on the CPU, float32, the same trainer on both sides:

    live     every step decodes the pictures (JPEG, 320x240) and computes visual tokens and latents
    kept     both were computed before and are read from disk

Both sides take turns in this one run and train on the same batches with the same noise. What makes
the ratio count is checked: their losses are equal, step by step. How much can be saved depends on
the share of the frozen networks, so that is counted for Stable Diffusion 1.5 with SigLIP SO400M at
512 pixels, without its weights, and asserted to be the tiny one's, too. Their share of the time is
printed beside it: where a processor computes small networks at unlike rates, it is another.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from count_diffusion import count_flops
from PIL import Image
from random_diffusion import SD15, TINY, create_encoder, create_parts, run_config
from safetensors.torch import save_file
from timing import median_turns, print_goal, print_versions

from metamorph_jax.config.loading import to_text
from metamorph_jax.visualizer.dataset import FeatureFiles
from metamorph_jax.visualizer.encoder import FrozenEncoder
from metamorph_jax.visualizer.feed import Feed, PictureData
from metamorph_jax.visualizer.latent_cache import build_cache
from metamorph_jax.visualizer.latents import create_latents
from metamorph_jax.visualizer.parts import Parts
from metamorph_jax.visualizer.pictures import Pictures, find_pictures, squashed
from metamorph_jax.visualizer.schema import VisualizerRunConfig
from metamorph_jax.visualizer.trainer import Trainer

GOAL = 1.5
NUM_PICTURES, BATCH_SIZE = 32, 8
# Losses of order 1: the frozen networks see other batches when features are kept (rounding 1e-7),
# and Adam turns what comes of it into 1e-6 a step.
TOLERANCE = 1e-4
MAX_SHARE_OFF = 0.02


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


def print_shares() -> None:
    """Prints and compares the work of the real networks and of the tiny ones."""
    real, tiny = count_flops(SD15), count_flops(TINY)
    for name, flops in (("Stable Diffusion 1.5 at 512 pixels", real), ("here", tiny)):
        parts = (flops.tower, flops.vae, flops.update)
        print(
            "{}: tower {:.1f}, VAE {:.1f}, update {:.1f} GFLOP a picture; ".format(
                name, *(value / 1e9 for value in parts)
            )
            + f"frozen {flops.frozen_share:.1%}"
        )
    off = abs(real.frozen_share - tiny.frozen_share)
    assert off <= MAX_SHARE_OFF, f"the shares of the frozen networks differ by {off:.1%}"
    bound = 1 / (1 - tiny.frozen_share)
    print(f"so at most {bound:.2f}x, and what decoding pictures takes, can be saved by FLOPs")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="of each measurement")
    parser.add_argument("--steps", type=int, default=2, help="updates in one measurement")
    parser.add_argument("--show_recipe", action="store_true", help="print the recipe, too")
    flags = parser.parse_args()
    config = run_config(TINY, BATCH_SIZE)
    if flags.show_recipe:
        print(to_text(config))
    print_versions("torch", "diffusers", "accelerate")
    print_shares()
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
        for side in sides.values():
            side.steps(1)  # what only the first step does is not measured
        turns = {name: lambda side=side: side.steps(flags.steps) for name, side in sides.items()}
        seconds, of_cpu = median_turns(turns, flags.repeats)
        difference = max(abs(a - b) for a, b in zip(live.losses, kept.losses, strict=True))
    print(f"parity  {len(live.losses)} losses, live and kept  max |diff| {difference:.1e}")
    assert difference <= TOLERANCE, f"losses differ by more than {TOLERANCE}"
    print(f"of a live step's time {1 - seconds['kept'] / seconds['live']:.1%} are saved")
    for name, value in seconds.items():
        print(f"{name:58s} {flags.steps * BATCH_SIZE / value:9.1f} pictures/s")
    print_goal("kept against live", seconds["live"] / seconds["kept"], GOAL)
    print(f"the same in seconds of CPU: {of_cpu['live'] / of_cpu['kept']:.2f}x")


if __name__ == "__main__":
    main()
