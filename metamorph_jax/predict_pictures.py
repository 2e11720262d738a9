"""Front door: `python -m metamorph_jax.predict_pictures` lets a run draw held-out pictures.

    python -m metamorph_jax.predict_pictures --checkpoint=runs/digits \
        --records=data/digits/heldout_generation.jsonl --image_root=data/digits \
        --out=/tmp/predictions.safetensors

writes the visual tokens that the encoder makes of each picture in an answer, and those that the
model predicts after the prompt alone. `python -m metamorph_jax.visualizer.reconstruct` starts it
and paints both. Read `decoding/predictions.py` next.
"""

import argparse
from pathlib import Path

from metamorph_jax.errors import run_main


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m metamorph_jax.predict_pictures",
        description="Predicts the pictures of held-out answers, as visual tokens.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, type=Path, help="folder of a run, or one checkpoint in it")
    add("--records", required=True, type=Path, help="LLaVA-format .jsonl or .json")
    add("--image_root", required=True, type=Path, help="folder that its paths are relative to")
    add("--num_pictures", type=int, default=8, help="evenly spread over the file (default: 8)")
    add("--out", required=True, type=Path, help="safetensors file to write")
    add("--debug", action="store_true", help="show tracebacks of user errors")
    flags = parser.parse_args(argv)
    from metamorph_jax.decoding.generator import Generator
    from metamorph_jax.decoding.predictions import load_held_out, predict, save_predictions

    pictures = load_held_out(flags.records, flags.image_root, flags.num_pictures)
    generator = Generator.load(flags.checkpoint)
    predictions = predict(generator, pictures, flags.image_root)
    save_predictions(flags.out, predictions, flags.image_root, generator.checkpoint)
    print(f"{flags.out}: {len(pictures)} pictures, {int(predictions.has_picture.sum())} drawn")
    return 0


if __name__ == "__main__":
    run_main(main)
