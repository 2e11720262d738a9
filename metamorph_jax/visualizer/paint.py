"""Front door: `python -m metamorph_jax.visualizer.paint` turns visual tokens into PNG files.

    python -m metamorph_jax.visualizer.paint --visualizer=DIR --tokens=visual_tokens.safetensors \
        --out=DIR [--guidance=6,7.5] [--steps=50] [--seeds=0,1] [--scheduler=DDIMScheduler]

or asks a MetaMorph, which is a run of this project or a Hugging Face folder, and paints what it
answers:

    python -m metamorph_jax.visualizer.paint --checkpoint=runs/digits --out=DIR \
        --prompt="Generate an image of a thin three." [--image=FILE]

Writes image_00000.png, ..., contact_sheet.png and pictures.json; read picture_files.py next.
"""

import argparse
from pathlib import Path

from metamorph_jax.errors import run_main
from metamorph_jax.visualizer.settings import add_settings, quiet_libraries, read_settings


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m metamorph_jax.visualizer.paint",
        description="Paints one picture for each [P, E] block of visual tokens: of a file, or of "
        "what a model answers to a prompt.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--tokens", type=Path, help='safetensors file with "visual_tokens"')
    add("--checkpoint", type=Path, help="in its place: a run, or a Hugging Face folder, to ask")
    add("--prompt", help='with --checkpoint: what to say; "<image>" marks where an image goes')
    add("--image", action="append", default=[], type=Path, help="an image file; repeat for more")
    add("--out", required=True, type=Path, help="folder for the PNG files")
    add(
        "--visualizer",
        type=Path,
        help="folder of a visualizer, or one of its checkpoints (default: that of the run)",
    )
    add_settings(parser)
    add("--debug", action="store_true", help="show tracebacks of user errors")
    flags = parser.parse_args(argv)
    if (flags.tokens is None) == (flags.checkpoint is None):
        parser.error("give --tokens, or --checkpoint and --prompt")
    if (flags.checkpoint is None) != (flags.prompt is None):
        parser.error("--checkpoint and --prompt go together")
    if flags.tokens is not None and flags.visualizer is None:
        parser.error("--tokens needs --visualizer")
    quiet_libraries()
    from metamorph_jax.visualizer.asking import ask, find_visualizer  # not for --help: torch
    from metamorph_jax.visualizer.picture_files import SHEET_FILE, paint_file

    tokens, visualizer = flags.tokens, flags.visualizer
    if tokens is None:
        visualizer = find_visualizer(visualizer, flags.checkpoint)
        tokens, text = ask(flags.checkpoint, flags.prompt, flags.image, flags.out)
        print(text, flush=True)
    files = paint_file(
        visualizer,
        tokens,
        flags.out,
        read_settings(flags),
        use_safety_checker=not flags.no_safety_checker,
    )
    print(f"{len(files)} pictures and {SHEET_FILE} in {flags.out}")
    return 0


if __name__ == "__main__":
    run_main(main)
