"""Front door: `python -m metamorph_jax.visualizer.paint` turns visual tokens into PNG files.

    python -m metamorph_jax.visualizer.paint --visualizer=DIR --tokens=visual_tokens.safetensors \
        --out=DIR [--guidance=1.0] [--steps=20] [--seed=0]

writes image_00000.png, image_00001.png, ... and contact_sheet.png, which shows them all.
The work is done in painter.py.
"""

import argparse
from pathlib import Path

from metamorph_jax.errors import run_main


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m metamorph_jax.visualizer.paint",
        description="Paints one picture for each [P, E] block of visual tokens in a file.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--visualizer", required=True, type=Path, help="run folder, or one of its checkpoints")
    add("--tokens", required=True, type=Path, help='safetensors file with "visual_tokens"')
    add("--out", required=True, type=Path, help="folder for the PNG files")
    add("--guidance", type=float, default=1.0, help="1 follows the tokens, more exaggerates them")
    add("--steps", type=int, default=20, help="denoising steps")
    add("--seed", type=int, default=0, help="of picture 0; picture i has seed + i")
    add("--debug", action="store_true", help="show tracebacks of user errors")
    flags = parser.parse_args(argv)
    from metamorph_jax.visualizer.painter import paint_file  # torch: not for --help

    files = paint_file(
        flags.visualizer,
        flags.tokens,
        flags.out,
        guidance=flags.guidance,
        num_steps=flags.steps,
        seed=flags.seed,
    )
    print(f"{len(files)} pictures and contact_sheet.png in {flags.out}")
    return 0


if __name__ == "__main__":
    run_main(main)
