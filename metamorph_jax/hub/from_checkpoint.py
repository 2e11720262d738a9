"""A checkpoint of ours -> a Hugging Face folder: `python -m metamorph_jax.convert orbax-to-hf`.

A model that predicts visual tokens becomes a MetaMorph (`export_metamorph.py`), one that only reads
images a LLaVA (`export_llava.py`). The folder gets its name when it is whole; until then, and if
anything goes wrong, there is none.
"""

import dataclasses
import functools
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
from metamorph_jax.hub.exporting import OnCast, cast, tensors_to_write
from metamorph_jax.hub.importing import NanWatch
from metamorph_jax.hub.layouts import OwnName, to_theirs
from metamorph_jax.hub.model_card import CARD_FILE, model_card
from metamorph_jax.hub.tensor_files import TensorFolder
from metamorph_jax.hub.tensor_writer import TensorToWrite, write_folder
from metamorph_jax.hub.to_checkpoint import UNUSED_FILE

DTYPES = {"fp32": np.dtype("float32"), "fp16": np.dtype("float16"), "bf16": np.dtype("bfloat16")}
MANIFEST_FILE = "training_manifest.json"
_TOWER = "vision_tower/"
_NORM, _POOLING_HEAD = f"{_TOWER}post_layernorm.", f"{_TOWER}head."
_SHOWN = 5
_logger = logging.getLogger(__name__)


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
    if out.is_symlink():
        raise UserError(f"{out} is a symbolic link; name a new folder, or the one it points to")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already and not empty; name a new folder")
    watch = NanWatch()
    contents = _contents(trained, dtype, watch)
    total = sum(tensor.num_bytes for tensor in contents.tensors.values())
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Removed whatever happens; the folder in it has gone to its place if all went well.
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
            folder = Path(temporary) / out.name
            folder.mkdir()
            _write_all(contents, trained, folder, lambda done: on_written(done, total))
            if out.exists():
                out.rmdir()
            folder.rename(out)
            sync_folder(out.parent)
    except OSError as error:
        if is_disk_full(error):
            raise UserError(
                f"{out}: no space left; {total:,} bytes are needed, and nothing was kept"
            ) from error
        raise
    if watch.names:
        _logger.warning(
            "NaN or infinity in %d tensor(s) as %s, such as %s; a wider --dtype (bf16, fp32) "
            "keeps what was too large",
            len(watch.names),
            dtype,
            ", ".join(sorted(watch.names)[:_SHOWN]),
        )


class _Contents(NamedTuple):
    """What an exported folder holds, and tokens that its tokenizer has to learn."""

    files: dict[str, Any]
    tensors: dict[str, TensorToWrite]
    new_tokens: tuple[str, ...]


def _write_all(
    contents: _Contents, trained: Trained, folder: Path, on_written: Callable[[int], None]
) -> None:
    """Writes everything into a folder and forces it to disk."""
    done = 0

    def count(name: str) -> None:
        nonlocal done
        done += contents.tensors[name].num_bytes
        on_written(done)

    copy_tokenizer(trained.run.tokenizer.path, folder, contents.new_tokens)
    _complete_tokenizer(folder / "tokenizer_config.json")
    for name, content in contents.files.items():
        _write(folder / name, content)
    write_folder(folder, contents.tensors, count)
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    sync_folder(folder)


def _contents(trained: Trained, dtype: np.dtype | None, on_cast: OnCast) -> _Contents:
    """Returns what to write."""
    run, model, params = trained.run, trained.run.model, open_params(trained.folder)
    # A stage may store what it does not train in fewer bits (frozen_dtype).
    stored = max((source.dtype for source in params.values()), key=lambda dtype: dtype.itemsize)
    name = str(np.dtype(dtype or stored))
    template = choose_template(run.tokenizer)
    if model.vision_head != "none":
        files = metamorph_files(
            model, trained.tokenizer, template, run.last_data.image_geometry, name
        )
        tensors = tensors_to_write(model, params, "composite", dtype, on_cast=on_cast)
        new_tokens = ()
    else:
        unused = _unused(trained.folder, dtype, on_cast)
        has_unused = any(own.startswith(_NORM) for own in unused)
        placeholder = export_llava.choose_placeholder(model, trained.tokenizer)
        files = export_llava.llava_files(
            model, trained.tokenizer, template, run.last_data.image_geometry, name, has_unused
        )
        rows = placeholder.vocab_size
        tensors = tensors_to_write(model, params, "llava", dtype, rows, on_cast)
        tensors |= _llava_rest(unused, model.vision.embed_dim, np.dtype(dtype or stored))
        new_tokens = (placeholder.token,) if placeholder.is_new else ()
    kind = files["config.json"]["architectures"][0]
    files[CARD_FILE] = model_card(run, trained.meta, kind).encode()
    files[MANIFEST_FILE] = json.loads(trained.meta.to_json())
    return _Contents(files, tensors, new_tokens)


def _complete_tokenizer(file: Path) -> None:
    """Says what a tokenizer makes: transformers < 5 would make it more than models take."""
    fields = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    usual = {"model_input_names": ["input_ids", "attention_mask"]}
    if not (file.parent / "tokenizer.model").is_file():
        usual["tokenizer_class"] = "PreTrainedTokenizerFast"
    _write(file, usual | fields)


def _unused(folder: Path, dtype: np.dtype | None, on_cast: OnCast) -> dict[str, TensorToWrite]:
    """Returns what an import kept of the tower beside the checkpoint: "part/own name" -> tensor.

    Of the other parts nothing that is kept has a place in the model, nor has a pooling head, which
    the config.json says is not there.
    """
    if not (folder / UNUSED_FILE).is_file():
        return {}
    kept = TensorFolder(folder)
    return {
        own: _kept_tensor(kept, own, dtype, on_cast)
        for own in kept.specs
        if own.startswith(_TOWER) and not own.startswith(_POOLING_HEAD)
    }


def _kept_tensor(
    folder: TensorFolder, name: str, dtype: np.dtype | None, on_cast: OnCast
) -> TensorToWrite:
    """Returns a tensor as it is kept; numbers that are no whole ones are cast to `dtype`."""
    spec = folder.specs[name]
    target = spec.dtype if dtype is None or spec.dtype.kind in "iub" else np.dtype(dtype)

    def read() -> np.ndarray:
        value = folder.read(name)
        if spec.dtype != target:
            value = cast(value, target)
            on_cast(name, value)
        return value

    return TensorToWrite(spec.shape, target, read)


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
    path.write_bytes(content)
