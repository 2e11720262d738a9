"""Front door: `python -m metamorph_jax.visualizer.train` turns pictures into a painter of them.

    python -m metamorph_jax.visualizer.train --config=configs/visualizer_digits.py \
        --features=FILE[,FILE ...] --image_root=DIR --out=DIR
    accelerate launch -m metamorph_jax.visualizer.train --config=configs/visualizer_sd15.py \
        --encoder=EXPORT --image_root=DIR [--images=LIST.txt] --latents=DIR --out=DIR

What the frozen encoder sees comes from features files (`python -m metamorph_jax.cache_features`)
or, with --encoder, from an exported MetaMorph's own tower. Other leaves of the recipe are set with
`--config.path.to.key=value`. Read loop.py next.
"""

import argparse
from pathlib import Path

from metamorph_jax.config.loading import load_recipe
from metamorph_jax.config.overrides import split_arguments
from metamorph_jax.errors import run_main
from metamorph_jax.visualizer.schema import VisualizerRunConfig


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m metamorph_jax.visualizer.train",
        description="Trains a visualizer on an encoder's features, resuming an earlier run.",
        epilog="Any key of the recipe: --config.path.to.key=value.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", required=True, help="recipe: configs/NAME.py or NAME.py:arg")
    add("--features", default="", help="FILE[,FILE ...]: safetensors of visual tokens")
    add("--encoder", type=Path, help="instead: exported MetaMorph whose tower makes them")
    add("--image_root", required=True, type=Path, help="folder of the pictures")
    add("--images", type=Path, help="with --encoder: text file of paths (default: all pictures)")
    add("--latents", type=Path, help="folder where latents of a VAE are kept, for all runs")
    add("--out", required=True, type=Path, help="where checkpoints and metrics are kept")
    add("--resume", default="auto", choices=["auto", "never"], help="default: auto")
    add("--max_steps", type=int, help="stop after this many steps in all")
    add("--debug", action="store_true", help="show tracebacks of user errors")
    overrides, rest = split_arguments(argv)
    flags = parser.parse_args(rest)
    config = load_recipe(flags.config, overrides, VisualizerRunConfig)
    from metamorph_jax.visualizer.loop import train  # torch: only when the recipe is sound
    from metamorph_jax.visualizer.sources import Sources

    sources = Sources(
        image_root=flags.image_root,
        features=tuple(Path(file) for file in flags.features.split(",") if file),
        encoder=flags.encoder,
        images=flags.images,
        latents=flags.latents,
    )
    return train(config, sources, flags.out, resume=flags.resume, max_steps=flags.max_steps)


if __name__ == "__main__":
    run_main(main)
