"""Folders of weights -> one of our checkpoints: `python -m metamorph_jax.convert hf-to-orbax`.

A run can begin from it (`model.init_from`) and `generate` can answer with it.
"""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from metamorph_jax.checkpoints.arrays import BlockReader
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
    DECODER,
    ArraySource,
    NanWatch,
    describe_sources,
    find_sources,
    owners,
)
from metamorph_jax.hub.inference import infer_model
from metamorph_jax.hub.layouts import TEXT_SIDE
from metamorph_jax.hub.parts import part_tables
from metamorph_jax.hub.runs import is_run
from metamorph_jax.hub.tensor_files import TensorFolder
from metamorph_jax.hub.tensor_writer import TensorToWrite, write_file
from metamorph_jax.models.init import abstract_params, init_some
from metamorph_jax.trees import flatten

IMPORT_STAGE = "import"
UNUSED_FILE = "unused.safetensors"
TOKENIZER = "tokenizer"  # in the folder of an import
TOWER = "vision_tower"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be imported.

    Attributes:
        run: its recipe is stored with the checkpoint; it may have no stages.
        tokenizer: folder to copy the tokenizer from; None: the recipe has its own.
        new_tokens: that the copy learns.
        new_ids: their ids.
    """

    run: RunConfig
    tokenizer: Path | None = None
    new_tokens: tuple[str, ...] = ()
    new_ids: tuple[int, ...] = ()


def import_checkpoint(
    plan: Plan,
    folders: Sequence[Path],
    out: Path,
    on_written: Callable[[int], None] = lambda num_bytes: None,
) -> tuple[Path, str]:
    """Writes the checkpoint of step 0; returns its folder, and a line on what begins at random.

    Args:
        plan: what is to be imported.
        folders: of weights, each part in one of them; parts in none begin at random.
        out: folder of a run, made when missing. If anything goes wrong, nothing new is left in it.
        on_written: is told the bytes of each block.

    Raises:
        UserError: a folder cannot be used or does not fit the recipe, there is a run in `out`
            already, or no space is left.
    """
    target = out / TOKENIZER
    for taken in (out / CHECKPOINTS, *([target] if plan.tokenizer else [])):
        if taken.exists():
            raise UserError(f"{taken} is there already; name another folder, or remove it")
    model = dataclasses.replace(plan.run.model, init_from=tuple(map(str, folders)))
    run, watch = dataclasses.replace(plan.run, model=model), NanWatch()
    found = find_sources(model, folders, watch, plan.new_ids)
    sources = with_new_parts(model, run.seed, found)

    def add_files(checkpoint: Path) -> None:
        _write_unused(model, folders, checkpoint)
        if plan.tokenizer is not None:
            copy_tokenizer(plan.tokenizer, target, plan.new_tokens)

    was_there = out.exists()
    try:
        checkpoint = write_params(out / CHECKPOINTS, sources, _meta(run), on_written, add_files)
    except BaseException:
        for made in (target, out / CHECKPOINTS, *([] if was_there else [out])):
            shutil.rmtree(made, ignore_errors=True)
        raise
    watch.warn()
    return checkpoint, describe_sources(found, sources)


def infer_plan(folders: Sequence[Path], out: Path) -> Plan:
    """Returns what folders hold as a recipe without stages, with their tokenizer.

    A decoder and a tower become a MetaMorph, whose two image tokens are added if they are missing.

    Raises:
        UserError: the folders are no model together, or there is no tokenizer in them.
    """
    opened = [open_folder(folder) for folder in folders]
    decoder = next((folder for folder in opened if DECODER in folder.parts), None)
    if decoder is None:
        raise UserError(f"{folders[0]}: no decoder is in it; name its folder with --llm")
    tokenizer = load_tokenizer(decoder.path)
    lacks = decoder.layout == "decoder" and tokenizer.special.image_start is None
    new_tokens = IMAGE_TOKENS if lacks else ()
    num_ids = tokenizer.vocab_size + len(new_tokens)
    model = infer_model(opened, num_ids)
    if num_ids > model.llm.vocab_size:
        raise UserError(
            f"{decoder.path}: its tokenizer has {num_ids:,} ids, its tables have "
            f"{model.llm.vocab_size:,} rows; get the tokenizer that belongs to the weights"
        )
    settings = TokenizerConfig(
        path=str(out / TOKENIZER),
        template=_usual_template(tokenizer, model),
        image_tokens=model.vision_head != "none",  # LLaVA announces no image
    )
    run = RunConfig(name=out.name, model=model, tokenizer=settings, stages=())
    return Plan(run, decoder.path, new_tokens, tuple(range(tokenizer.vocab_size, num_ids)))


def _usual_template(tokenizer: Tokenizer, model: ModelConfig) -> str:
    """Returns the template that models with such control tokens are asked in."""
    if "<|start_header_id|>" in tokenizer.names:
        return "llama3" if model.vision_head == "none" else "metamorph_llama3"
    return "qwen" if "<|im_start|>" in tokenizer.names else "v1"


def check_holds(flag: str, folder: Path, part: str) -> None:
    """Checks that the folder that a flag names has the part that the flag asks for.

    Raises:
        UserError: it has not: two flags were exchanged, say.
    """
    if is_run(folder):
        return
    found = open_folder(folder).parts
    if part not in found:
        raise UserError(f"{flag}={folder}: expected a {part} in it, found {' and '.join(found)}")


def num_bytes(model: ModelConfig) -> int:
    """Returns the size of a model's parameters, vocabulary padding included."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract_params(model)))


def with_new_parts(
    model: ModelConfig, seed: int, sources: Mapping[str, BlockReader]
) -> dict[str, BlockReader]:
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
    """Keeps what the model does not use of its tower, so that an export can have it again."""
    opened = {path: open_folder(path) for path in folders if not is_run(path)}
    owner = owners(opened, model).get(TOWER)
    if owner is None:
        return
    folder = opened[owner]
    tensors = {
        own: _copy(folder.tensors, name)
        for own, name in unused_tensors(model, folder.parts[TOWER]).items()
    }
    if tensors:
        write_file(checkpoint / UNUSED_FILE, tensors)


def _copy(folder: TensorFolder, name: str) -> TensorToWrite:
    spec = folder.specs[name]
    return TensorToWrite(spec.shape, spec.dtype, functools.partial(folder.read, name))


def unused_tensors(model: ModelConfig, names: Mapping[str, str]) -> dict[str, str]:
    """Returns a tower's tensors that a model has no use for: "vision_tower/own name" -> name.

    A text side and SigLIP's pooling head are not among them: no model has a place for them.

    Args:
        model: that was imported.
        names: own name -> name, of all tensors of the tower.
    """
    used = set(part_tables(model)[TOWER].names())
    left_out = (*TEXT_SIDE, "head.")
    return {
        f"{TOWER}/{own}": name
        for own, name in names.items()
        if own not in used and not own.startswith(left_out)
    }
