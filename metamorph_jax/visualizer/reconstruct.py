"""Front door: `python -m metamorph_jax.visualizer.reconstruct` shows what a model has learned.

    python -m metamorph_jax.visualizer.reconstruct --checkpoint=runs/digits \
        --records=data/digits/heldout_generation.jsonl --image_root=data/digits

lets the model draw the pictures in held-out answers (in a process of JAX's own), and paints, side
by side, the originals, what their encoded tokens give, and what the model predicted. Writes
RUN/pictures/step_XXXXXXXX.png and .json; read reconstruction.py next.
"""

import argparse
from pathlib import Path

from metamorph_jax.errors import run_main
from metamorph_jax.visualizer.settings import add_settings, quiet_libraries, read_settings

PREDICTIONS_FILE = "predictions.safetensors"


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m metamorph_jax.visualizer.reconstruct",
        description="Paints held-out pictures from their own tokens and from predicted ones.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, help="folder of a run, or one checkpoint in it")
    add("--records", type=Path, help="with --checkpoint: LLaVA-format file, pictures in answers")
    add("--image_root", type=Path, help="with --checkpoint: folder of the paths in --records")
    add("--num_pictures", type=int, default=8, help="evenly spread over the file (default: 8)")
    add("--predictions", type=Path, help="in their place: what predict_pictures wrote")
    add("--visualizer", type=Path, help="folder of a visualizer (default: RUN/visualizer)")
    add("--out", type=Path, help="folder of the sheet (default: RUN/pictures)")
    add("--tensorboard", type=Path, help="folder of event files that shows it, too")
    add_settings(parser)
    add("--debug", action="store_true", help="show tracebacks of user errors")
    flags = parser.parse_args(argv)
    if (flags.predictions is None) == (flags.checkpoint is None):
        parser.error("give --checkpoint, --records and --image_root, or --predictions")
    needed = ("visualizer", "out") if flags.checkpoint is None else ("records", "image_root")
    for name in needed:
        if getattr(flags, name) is None:
            parser.error(f"--{name} is needed")
    quiet_libraries()
    from metamorph_jax.visualizer.asking import find_run, find_visualizer  # not for --help: torch

    visualizer, out = flags.visualizer, flags.out
    if flags.checkpoint is not None:
        visualizer = find_visualizer(visualizer, flags.checkpoint)
        out = out or find_run(flags.checkpoint) / "pictures"
    return _reconstruct(flags, visualizer, out)


def _reconstruct(flags: argparse.Namespace, visualizer: Path, out: Path) -> int:
    """Does what the flags say; returns the exit code."""
    from metamorph_jax.visualizer.asking import run_jax
    from metamorph_jax.visualizer.picture_files import load_painter
    from metamorph_jax.visualizer.reconstruction import reconstruct, show_in_tensorboard

    use_safety_checker = not flags.no_safety_checker
    # First, so that what does not fit is told before a large model is loaded.
    painter = load_painter(visualizer, read_settings(flags), use_safety_checker=use_safety_checker)
    predictions = flags.predictions
    if predictions is None:
        predictions = out / PREDICTIONS_FILE
        given = {"checkpoint": flags.checkpoint, "records": flags.records}
        given |= {"image_root": flags.image_root, "num_pictures": flags.num_pictures}
        arguments = [f"--{name}={value}" for name, value in given.items()]
        failure = f"{flags.checkpoint} could not predict"
        run_jax("predict_pictures", [*arguments, f"--out={predictions}"], failure)
    file, numbers = reconstruct(painter, predictions, visualizer, out)
    if flags.tensorboard is not None:
        show_in_tensorboard(flags.tensorboard, file, numbers)
    drawn, mean = numbers["num_drawn"], numbers["mean_cosine"]
    print(
        f"{file}: {drawn} of {numbers['num_pictures']} drawn"
        + (f", mean cosine {mean:.3f}" if drawn else "")
        + f" (the mean picture: {numbers['mean_picture_cosine']:.3f})"
    )
    return 0


if __name__ == "__main__":
    run_main(main)
