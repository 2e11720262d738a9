"""A checkpoint of ours -> a Hugging Face folder: `python -m metamorph_jax.convert orbax-to-hf`.

A model that predicts visual tokens becomes a MetaMorph (`export_metamorph.py`), one that only reads
images a LLaVA (`export_llava.py`). The folder gets its name when it is whole; until then, and if
anything goes wrong, there is none.
"""

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metamorph_jax.checkpoints.folders import find_checkpoints, no_checkpoint
from metamorph_jax.checkpoints.manifest import sync_folder
from metamorph_jax.checkpoints.metadata import CheckpointMeta
from metamorph_jax.checkpoints.selection import Selector
from metamorph_jax.checkpoints.store import is_disk_full, read_meta_file
from metamorph_jax.checkpoints.streaming import open_params
from metamorph_jax.config.loading import from_dict
from metamorph_jax.config.schema_run import RunConfig
from metamorph_jax.data.templates import choose_template
from metamorph_jax.data.tokenizer import Tokenizer, copy_tokenizer, load_tokenizer
from metamorph_jax.errors import UserError
from metamorph_jax.hub import export_llava
from metamorph_jax.hub.export_metamorph import metamorph_files
from metamorph_jax.hub.exporting import tensors_to_write
from metamorph_jax.hub.layouts import OwnName, to_theirs
from metamorph_jax.hub.model_card import CARD_FILE, model_card
from metamorph_jax.hub.tensor_files import TensorFolder
from metamorph_jax.hub.tensor_writer import TensorToWrite, write_folder
from metamorph_jax.hub.to_checkpoint import UNUSED_FILE

DTYPES = {"fp32": np.dtype("float32"), "fp16": np.dtype("float16"), "bf16": np.dtype("bfloat16")}
MANIFEST_FILE = "training_manifest.json"
_NORM = "vision_tower/post_layernorm."


@dataclasses.dataclass(frozen=True)
class Trained:
    """A checkpoint, opened but not read.

    Attributes:
        folder: of the checkpoint, verified.
        meta: what it says about itself.
        run: its recipe.
        tokenizer: of the recipe.
    """

    folder: Path
    meta: CheckpointMeta
    run: RunConfig
    tokenizer: Tokenizer


def open_checkpoint(path: Path, step: int | None = None) -> Trained:
    """Returns a checkpoint of a run, after verifying every file of it.

    Args:
        path: a run's folder, its `checkpoints`, or one checkpoint.
        step: of the run; None: the newest that verifies.

    Raises:
        UserError: there is none, or its tokenizer is gone.
    """
    directory, step = find_checkpoints(path, step)
    folder = Selector(directory.absolute()).choose(step, quarantine=False)
    if folder is None:
        raise no_checkpoint(path)
    meta = read_meta_file(folder)
    run = from_dict(json.loads(meta.recipe), RunConfig)
    return Trained(folder, meta, run, load_tokenizer(run.tokenizer.path))


def export_checkpoint(
    trained: Trained,
    out: Path,
    dtype: np.dtype | None = None,
    on_written: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes the folder.

    Args:
        trained: what to export.
        out: folder to make.
        dtype: of the tensors; None: as they are stored.
        on_written: is told how many bytes of how many are written.

    Raises:
        UserError: `out` is not empty, the model has no place in Hugging Face's classes, or no space
            is left.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already and not empty; name a new folder")
    files, tensors, new_tokens = _contents(trained, dtype)
    done, total = 0, sum(tensor.num_bytes for tensor in tensors.values())

    def count(name: str) -> None:
        nonlocal done
        done += tensors[name].num_bytes
        on_written(done, total)

    temporary = out.absolute().with_name(f"{out.name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        copy_tokenizer(trained.run.tokenizer.path, temporary, new_tokens)
        _complete_tokenizer(temporary / "tokenizer_config.json")
        for name, content in files.items():
            _write(temporary / name, content)
        write_folder(temporary, tensors, count)
        sync_folder(temporary)
        if out.exists():
            out.rmdir()
        temporary.rename(out.absolute())
        sync_folder(out.absolute().parent)
    except BaseException as error:  # Ctrl-C too
        shutil.rmtree(temporary, ignore_errors=True)
        if is_disk_full(error):
            raise UserError(
                f"{out}: no space left; {total:,} bytes are needed, and nothing was kept"
            ) from error
        raise


def _contents(
    trained: Trained, dtype: np.dtype | None
) -> tuple[dict[str, Any], dict[str, TensorToWrite], tuple[str, ...]]:
    """Returns files, tensors, and tokens that the tokenizer has to learn."""
    run, model, params = trained.run, trained.run.model, open_params(trained.folder)
    stored = next(iter(params.values())).dtype
    name = str(np.dtype(dtype or stored))
    template = choose_template(run.tokenizer)
    if model.vision_head != "none":
        files = metamorph_files(
            model, trained.tokenizer, template, run.last_data.image_geometry, name
        )
        tensors, new_tokens = tensors_to_write(model, params, "composite", dtype), ()
    else:
        unused = _unused(trained.folder, dtype)
        has_unused = any(own.startswith(_NORM) for own in unused)
        placeholder = export_llava.choose_placeholder(model, trained.tokenizer)
        files = export_llava.llava_files(
            model, trained.tokenizer, template, run.last_data.image_geometry, name, has_unused
        )
        rows = placeholder.vocab_size
        tensors = tensors_to_write(model, params, "llava", dtype, rows)
        tensors |= _llava_rest(unused, model.vision.embed_dim, np.dtype(dtype or stored))
        new_tokens = (placeholder.token,) if placeholder.is_new else ()
    kind = files["config.json"]["architectures"][0]
    files[CARD_FILE] = model_card(run, trained.meta, kind).encode()
    files[MANIFEST_FILE] = json.loads(trained.meta.to_json())
    return files, tensors, new_tokens


def _complete_tokenizer(file: Path) -> None:
    """Says what a tokenizer makes: transformers < 5 would make it more than models take."""
    fields = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    usual = {"model_input_names": ["input_ids", "attention_mask"]}
    if not (file.parent / "tokenizer.model").is_file():
        usual["tokenizer_class"] = "PreTrainedTokenizerFast"
    _write(file, usual | fields)


def _unused(folder: Path, dtype: np.dtype | None) -> dict[str, TensorToWrite]:
    """Returns what an import kept beside the checkpoint: "part/own name" -> tensor."""
    if not (folder / UNUSED_FILE).is_file():
        return {}
    kept = TensorFolder(folder)
    return {
        own: TensorToWrite(spec.shape, np.dtype(dtype or spec.dtype), _reader(kept, own, dtype))
        for own, spec in kept.specs.items()
    }


def _reader(folder: TensorFolder, name: str, dtype: np.dtype | None) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        value = folder.read(name)
        return value if dtype is None else value.astype(dtype)

    return read


def _llava_rest(
    unused: Mapping[str, TensorToWrite], width: int, dtype: np.dtype
) -> dict[str, TensorToWrite]:
    """Returns the tensors of LLaVA that our model does not have, by their names.

    Without those that an import kept, the tower ends at the layer that is read, and only the norm
    behind it, which nothing looks at, has to be there: a new one's.
    """
    if not any(own.startswith(_NORM) for own in unused):
        new = {"weight": np.ones, "bias": np.zeros}
        unused = {
            **unused,
            **{
                _NORM + name: TensorToWrite((width,), dtype, functools.partial(make, width, dtype))
                for name, make in new.items()
            },
        }
    return {
        to_theirs("llava", OwnName(*own.split("/", 1))): tensor for own, tensor in unused.items()
    }


def _write(path: Path, content: bytes | dict[str, Any]) -> None:
    if isinstance(content, dict):
        content = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
