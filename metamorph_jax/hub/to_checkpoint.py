"""Folders of weights -> one of our checkpoints: `python -m metamorph_jax.convert hf-to-orbax`.

A run can begin from it (`model.init_from`) and `generate` can answer with it.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from metamorph_jax.checkpoints.folders import CHECKPOINTS
from metamorph_jax.checkpoints.metadata import CheckpointMeta, library_versions
from metamorph_jax.checkpoints.naming import tree_fingerprint
from metamorph_jax.checkpoints.streaming import write_params
from metamorph_jax.config.loading import to_dict
from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.config.schema_run import RunConfig, TokenizerConfig
from metamorph_jax.data.tokenizer import IMAGE_TOKENS, Tokenizer, copy_tokenizer, load_tokenizer
from metamorph_jax.errors import UserError
from metamorph_jax.hub.folder import open_folder
from metamorph_jax.hub.importing import (
    ArraySource,
    NanWatch,
    Source,
    find_sources,
    is_run,
    unused_tensors,
)
from metamorph_jax.hub.inference import infer_model
from metamorph_jax.hub.tensor_files import TensorFolder
from metamorph_jax.hub.tensor_writer import TensorToWrite, write_file
from metamorph_jax.models.init import abstract_params, init_some
from metamorph_jax.trees import flatten

IMPORT_STAGE = "import"
UNUSED_FILE = "unused.safetensors"


def import_checkpoint(
    run: RunConfig,
    folders: Sequence[Path],
    out: Path,
    on_written: Callable[[int], None] = lambda num_bytes: None,
) -> Path:
    """Writes the checkpoint of step 0 and returns its folder.

    Args:
        run: its recipe is stored with the checkpoint; it may have no stages.
        folders: of weights, each part in one of them; parts in none begin at random.
        out: folder of a run, made when missing.
        on_written: is told the bytes of each block.

    Raises:
        UserError: a folder cannot be used or does not fit the recipe, there is a checkpoint in
            `out`, or no space is left.
    """
    watch = NanWatch()
    sources = with_new_parts(run.model, run.seed, find_sources(run.model, folders, watch))
    unused = functools.partial(_write_unused, run.model, folders)
    checkpoint = write_params(out / CHECKPOINTS, sources, _meta(run), on_written, unused)
    watch.warn()
    return checkpoint


def infer_run(folders: Sequence[Path], out: Path) -> RunConfig:
    """Returns a recipe without stages for what folders hold, with the tokenizer copied to `out`.

    A decoder and a tower become a MetaMorph, whose two image tokens are added if they are missing.

    Raises:
        UserError: the folders are no model together, or there is no tokenizer in them.
    """
    opened = [open_folder(folder) for folder in folders]
    speaker = next((folder for folder in opened if "language_model" in folder.parts), None)
    if speaker is None:
        raise UserError(f"{folders[0]}: no decoder is in it; name its folder with --llm")
    tokenizer = load_tokenizer(speaker.path)
    lacks = speaker.layout == "decoder" and tokenizer.special.image_start is None
    new_tokens = IMAGE_TOKENS if lacks else ()
    model = infer_model(opened, len(new_tokens))
    target = out / "tokenizer"
    copy_tokenizer(speaker.path, target, new_tokens)
    settings = TokenizerConfig(
        path=str(target),
        template=_usual_template(tokenizer, model),
        image_tokens=model.vision_head != "none",  # LLaVA announces no image
    )
    names = tuple(str(folder) for folder in folders)
    model = dataclasses.replace(model, init_from=names)
    return RunConfig(name=out.name, model=model, tokenizer=settings, stages=())


def _usual_template(tokenizer: Tokenizer, model: ModelConfig) -> str:
    """Returns the template that models with such control tokens are asked in."""
    if "<|start_header_id|>" in tokenizer.names:
        return "llama3" if model.vision_head == "none" else "metamorph_llama3"
    return "qwen" if "<|im_start|>" in tokenizer.names else "v1"


def num_bytes(model: ModelConfig) -> int:
    """Returns the size of a model's parameters, vocabulary padding included."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract_params(model)))


def with_new_parts(
    model: ModelConfig, seed: int, sources: Mapping[str, Source]
) -> dict[str, Source]:
    """Returns sources of all parameters, in the order of the tree; what is new begins at random."""
    names = list(flatten(abstract_params(model)))
    fresh = frozenset(names) - sources.keys()
    made = jax.jit(lambda key: init_some(model, key, fresh))(jax.random.key(seed)) if fresh else {}
    return {
        name: ArraySource(np.asarray(made[name])) if name in made else sources[name]
        for name in names
    }


def _meta(run: RunConfig) -> CheckpointMeta:
    return CheckpointMeta(
        step=0,
        stage=IMPORT_STAGE,
        stage_step=0,
        stage_total_steps=0,
        data_fingerprint="",
        seed=run.seed,
        recipe=json.dumps(to_dict(run)),
        model_fingerprint=tree_fingerprint(abstract_params(run.model)),
        versions=library_versions(),
    )


def _write_unused(model: ModelConfig, folders: Sequence[Path], checkpoint: Path) -> None:
    """Keeps what the model has no use for beside it, so that an export can have it again."""
    tensors: dict[str, TensorToWrite] = {}
    for path in folders:
        if is_run(path):
            continue
        folder = open_folder(path)
        for own, name in unused_tensors(model, folder.parts).items():
            tensors[own] = _copy(folder.tensors, name)
    if tensors:
        write_file(checkpoint / UNUSED_FILE, tensors)


def _copy(folder: TensorFolder, name: str) -> TensorToWrite:
    spec = folder.specs[name]
    return TensorToWrite(spec.shape, spec.dtype, functools.partial(folder.read, name))
