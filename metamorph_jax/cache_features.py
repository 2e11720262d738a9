"""Front door: `python -m metamorph_jax.cache_features` writes what the frozen encoder sees.

    python -m metamorph_jax.cache_features --checkpoint=runs/digits --jsonl=data/train.jsonl \
        --image_root=data --out=runs/digits/features.safetensors

The visualizer is trained on this file. It holds the tensor "features", float32 [images, P, E], and
as metadata "images" (JSON list of paths relative to the image root) and "encoder_fingerprint".
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from metamorph_jax.errors import run_main


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m metamorph_jax.cache_features",
        description="Encodes all images that LLaVA-format files name, each once, in file order.",
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder of a run")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the newest intact)")
    parser.add_argument("--jsonl", required=True, help="FILE[,FILE ...]: .jsonl or .json")
    parser.add_argument(
        "--image_root", required=True, type=Path, help="folder that image paths are relative to"
    )
    parser.add_argument("--out", required=True, type=Path, help="file to write (.safetensors)")
    parser.add_argument("--batch_size", type=int, default=64, help="images per batch")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of user errors")
    flags = parser.parse_args(argv)
    from safetensors.numpy import save_file

    from metamorph_jax.decoding.features import Encoder
    from metamorph_jax.decoding.generator import find_checkpoints
    from metamorph_jax.metrics.phases import phase

    paths = image_paths(flags.jsonl.split(","))
    checkpoints, step = find_checkpoints(flags.checkpoint, flags.step)
    with phase(checkpoints.parent, "cache_features"):
        encoder = Encoder.load(checkpoints, step, flags.batch_size)
        features = encoder.encode_files(flags.image_root, paths, flags.jsonl)
        metadata = {"images": json.dumps(paths), "encoder_fingerprint": encoder.fingerprint}
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        partial = flags.out.with_name(flags.out.name + ".partial")
        save_file({"features": features}, partial, metadata)
        partial.replace(flags.out)
    print(f"{flags.out}: {len(paths)} images, {features.shape[1]} tokens of {features.shape[2]}")
    return 0


def image_paths(files: Sequence[str]) -> list[str]:
    """Returns the images that the records of LLaVA-format files name, each once, in order.

    Raises:
        UserError: a file is missing, malformed, or names no image at all.
    """
    from metamorph_jax.data.sources import open_source
    from metamorph_jax.errors import UserError

    paths = [path for file in files for record in open_source(file) for path in record.images]
    if not paths:
        raise UserError(f"--jsonl={','.join(files)}: no record names an image")
    return list(dict.fromkeys(paths))


if __name__ == "__main__":
    run_main(main)
