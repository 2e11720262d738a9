"""Front door: `python -m metamorph_jax.cache_features` writes what the frozen encoder sees.

    python -m metamorph_jax.cache_features --config=configs/vpit_8b.py --out=data/features \
        --checkpoint=runs/encoder

encodes every image of every stage that leaves the tower as it is, once. A stage then reads features
instead of pixels if its recipe says `data.features = "data/features"`. Run it again after a kill or
after adding data: only what is missing is computed. Without --checkpoint, the tower is the one that
a new run begins with. Read `training/feature_cache.py` next.

    python -m metamorph_jax.cache_features --checkpoint=runs/digits --jsonl=data/train.jsonl \
        --image_root=data --out=runs/digits/features.safetensors

writes the one file that the visualizer is trained on: the tensor "features", float32
[images, P, E], and as metadata "images" (JSON list of paths relative to the image root),
"encoder_fingerprint" and "view" (what the tower saw of images that are not square).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from metamorph_jax.errors import UserError, run_main

if TYPE_CHECKING:
    from metamorph_jax.config.schema_run import RunConfig
    from metamorph_jax.typing import PyTree

_NUM_SHOWN = 3


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m metamorph_jax.cache_features",
        description="Encodes images once, for training (--config) or the visualizer (--jsonl).",
        epilog="Any key of the recipe: --config.path.to.key=value.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="recipe: configs/NAME.py or NAME.py:arg")
    parser.add_argument("--checkpoint", type=Path, help="folder of a run whose tower to use")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the newest intact)")
    parser.add_argument("--jsonl", help="FILE[,FILE ...]: .jsonl or .json")
    parser.add_argument(
        "--image_root", type=Path, help="folder that the paths in --jsonl are relative to"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder to write (default: the recipe's data.features); with --jsonl: .safetensors",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="with --jsonl: images per batch")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of user errors")
    if "-h" in argv or "--help" in argv:
        parser.parse_args(argv)
    from metamorph_jax.config.overrides import split_arguments

    overrides, rest = split_arguments(argv)
    flags = parser.parse_args(rest)
    if (flags.config is None) == (flags.jsonl is None):
        parser.error("give --config for training, or --jsonl for the visualizer")
    if flags.config is not None:
        return write_stores(flags, overrides)
    for name in ("checkpoint", "image_root", "out"):
        if getattr(flags, name) is None:
            parser.error(f"--jsonl needs --{name}")
    return write_file(flags)


def write_stores(flags: argparse.Namespace, overrides: dict[str, str]) -> int:
    """Writes the feature caches that a recipe's stages read; returns the exit code.

    Raises:
        UserError: no stage can use one, or the checkpoint or a source cannot be used.
    """
    from metamorph_jax.config.loading import load_recipe
    from metamorph_jax.data.feature_store import FeatureWriter
    from metamorph_jax.models.encoder import encoder_fingerprint
    from metamorph_jax.signals import EXIT_STOPPED, StopRequest
    from metamorph_jax.training.feature_cache import write_features

    config = load_recipe(flags.config, overrides)
    folders = stage_folders(config, flags.out)
    tower = load_tower(config, flags.checkpoint, flags.step)
    fingerprint = encoder_fingerprint(config.model, tower)
    shape = (config.model.visual_tokens.num_tokens, config.model.visual_dim)
    with StopRequest() as stop:
        for index, folder in folders.items():
            stage = config.stages[index]
            with FeatureWriter(folder, fingerprint, config.model.dtype, shape) as writer:
                tally = write_features(config, stage, tower, writer, lambda: bool(stop))
            print(
                f"{folder}: {len(writer):,} images, {tally.encoded:,} of them new, from "
                f"{tally.records:,} records of stage {stage.name}; {len(tally.bad):,} bad records"
            )
            for message in tally.bad[:_NUM_SHOWN]:
                print(f"  - {message}")
            if stop:
                print("stopped; the same command goes on from here")
                return EXIT_STOPPED
    return 0


def stage_folders(config: "RunConfig", out: Path | None) -> dict[int, Path]:
    """Returns where the features of which stage go.

    Raises:
        UserError: no stage reads features, or none says from where.
    """
    frozen = [i for i, stage in enumerate(config.stages) if not stage.needs_pixels]
    if not frozen:
        raise UserError(
            f"recipe {config.name}: every stage is contrastive or trains the vision tower, so that "
            "none can read kept features"
        )
    named = {i: Path(config.stages[i].data.features) for i in frozen}
    named = {i: folder for i, folder in named.items() if folder != Path()}
    if out is not None:
        return dict.fromkeys(named or frozen, out)
    if not named:
        raise UserError(
            f"recipe {config.name}: no stage names a folder in data.features; name one with --out, "
            f"and train with --config.stages.{config.stages[frozen[0]].name}.data.features=FOLDER"
        )
    return named


def load_tower(config: "RunConfig", run: Path | None, step: int | None) -> "PyTree":
    """Returns the tower of a run's checkpoint, or the one that a new run begins with.

    Raises:
        UserError: there is no usable checkpoint, or it is of another model.
    """
    from metamorph_jax.checkpoints.folders import find_checkpoints
    from metamorph_jax.checkpoints.store import CheckpointStore
    from metamorph_jax.models.init import abstract_params
    from metamorph_jax.training.feature_cache import initial_tower

    if run is None:
        return initial_tower(config)
    checkpoints, step = find_checkpoints(run, step)
    params, _ = CheckpointStore(checkpoints).restore_params(abstract_params(config.model), step)
    return params["vision_tower"]


def write_file(flags: argparse.Namespace) -> int:
    """Writes the features file of the visualizer; returns the exit code.

    Raises:
        UserError: a file, an image or the checkpoint cannot be used.
    """
    from safetensors.numpy import save_file

    from metamorph_jax.checkpoints.folders import find_checkpoints
    from metamorph_jax.decoding.features import Encoder
    from metamorph_jax.metrics.phases import phase

    paths = image_paths(flags.jsonl.split(","))
    checkpoints, step = find_checkpoints(flags.checkpoint, flags.step)
    with phase(checkpoints.parent, "cache_features"):
        encoder = Encoder.load(checkpoints, step, flags.batch_size)
        features = encoder.encode_files(flags.image_root, paths, flags.jsonl)
        metadata = {
            "images": json.dumps(paths),
            "encoder_fingerprint": encoder.fingerprint,
            "view": view_of(encoder.geometry, encoder.config.vision.family),
        }
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        partial = flags.out.with_name(flags.out.name + ".partial")
        save_file({"features": features}, partial, metadata)
        partial.replace(flags.out)
    print(f"{flags.out}: {len(paths)} images, {features.shape[1]} tokens of {features.shape[2]}")
    return 0


def view_of(geometry: str, family: str) -> str:
    """Returns what a tower sees of an image that is not square, in the visualizer's words.

    Args:
        geometry: of the images, as in the recipe's data.
        family: of the tower ("siglip", "clip"), whose processor squashes or cuts.
    """
    if geometry == "square":
        return "same_crop" if family == "clip" else "squash"
    return "pad" if geometry == "pad" else "squash"


def image_paths(files: Sequence[str]) -> list[str]:
    """Returns the images that the records of LLaVA-format files name, each once, in order.

    Raises:
        UserError: a file is missing, malformed, or names no image file at all.
    """
    from metamorph_jax.data.sources import open_source

    images = [image for file in files for record in open_source(file) for image in record.images]
    paths = [image for image in images if isinstance(image, str)]
    if not paths:
        raise UserError(f"--jsonl={','.join(files)}: no record names an image file")
    return list(dict.fromkeys(paths))


if __name__ == "__main__":
    run_main(main)
