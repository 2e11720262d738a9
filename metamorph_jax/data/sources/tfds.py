"""`tfds:NAME/SPLIT`: data sets of TensorFlow Datasets, read without TensorFlow.

They must have been prepared with `file_format="array_record"`. Features `conversations`,
`messages`, `image`, `images` and `caption` mean what they mean in JSON; `text` is a caption where
there is no other; the name of a `label` is one where there is no text. Images stay encoded.
"""

import functools
import hashlib
import os
import urllib.parse
from typing import Any

import numpy as np

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.records import Record, parse_record
from metamorph_jax.data.sources.array_record import check_not_forked
from metamorph_jax.data.sources.base import Source
from metamorph_jax.errors import UserError

_OPEN_SOURCES = 16
_LISTS_OF_STRUCTURES = ("conversations", "messages")
_FORM = (
    "expected tfds:NAME/SPLIT, tfds:NAME:VERSION/SPLIT, and ?data_dir=FOLDER behind it if needed"
)


class TfdsSource(Source):
    """One split of a prepared data set.

    Raises:
        UserError: there is no such data set or split in the data folder, or it was prepared in a
            format without random access.
    """

    def __init__(self, path: str):
        self.path = path
        name, split, data_dir = _parse(path)
        self._folder, self._split = _find_folder(path, name, data_dir), split
        try:
            self._count = len(_open(self._folder, split, os.getpid()).examples)
        except UserError:
            raise
        except (ValueError, OSError, NotImplementedError, AssertionError, RuntimeError) as error:
            raise UserError(f"{path}: {_first_line(error)}; {_FORM}") from None
        if not self._count:
            raise UserError(f"{path}: the split holds no records")
        self.fingerprint = _hash_descriptions(self._folder, split)

    def __len__(self) -> int:
        return self._count

    def where(self, index: int) -> str:
        """Returns FILE:NUMBER, counted from 1."""
        return f"{self.path}:{index + 1}"

    def read(self, index: int) -> Record:
        """Returns one record."""
        opened = _open(self._folder, self._split, os.getpid())
        try:
            example = opened.examples[index]
        except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
            raise BadSample(
                "malformed_record",
                f"{self.where(index)}: the example is damaged ({_first_line(error)}); prepare the "
                "data set again",
            ) from None
        try:
            fields = _fields(example, opened.label_names)
        except UnicodeDecodeError as error:
            raise BadSample(
                "malformed_record", f"{self.where(index)}: a text is not UTF-8 ({error})"
            ) from None
        return parse_record(fields, self.path, index + 1)


class _Opened:
    """A split, for one process."""

    def __init__(self, folder: str, split: str):
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(folder)
        features = builder.info.features
        images = {
            name: tfds.decode.SkipDecoding()
            for name in features
            if isinstance(features[name], tfds.features.Image)
        }
        self.examples = builder.as_data_source(split, decoders=images)
        self.label_names: dict[str, list[str]] = {
            name: features[name].names
            for name in features
            if isinstance(features[name], tfds.features.ClassLabel)
        }


# The process is part of the key: readers are used only where they were opened.
@functools.lru_cache(maxsize=_OPEN_SOURCES)
def _open(folder: str, split: str, process: int) -> _Opened:
    check_not_forked(folder)
    return _Opened(folder, split)


def _parse(path: str) -> tuple[str, str, str | None]:
    """Returns (name, split, data folder or None)."""
    place, _, query = path.removeprefix("tfds:").partition("?")
    name, _, split = place.rpartition("/")
    options = dict(urllib.parse.parse_qsl(query))
    if not name or not split or set(options) - {"data_dir"} or bool(query) != bool(options):
        raise UserError(f"{path}: not the name of a data set; {_FORM}")
    return name, split, options.get("data_dir")


def _find_folder(path: str, name: str, data_dir: str | None) -> str:
    """Returns the folder of a prepared data set; nothing is downloaded."""
    from tensorflow_datasets.core.read_only_builder import builder_from_files

    try:
        return str(builder_from_files(name, data_dir=data_dir).data_path)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(
            f"{path}: {_first_line(error)} Prepare it with "
            f'tfds.builder(NAME, file_format="array_record").download_and_prepare(); {_FORM}'
        ) from None


def _hash_descriptions(folder: str, split: str) -> str:
    """Returns a hash of what the library wrote about the data set, sizes and counts included."""
    digest = hashlib.sha256(split.encode())
    for name in ("dataset_info.json", "features.json"):
        with open(os.path.join(folder, name), "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if "array_record" in entry.name:
            digest.update(f"{entry.name} {entry.stat().st_size}\n".encode())
    return digest.hexdigest()


def _fields(example: dict[str, Any], label_names: dict[str, list[str]]) -> dict[str, Any]:
    """Returns the fields of a record."""
    fields = {}
    for name, value in example.items():
        is_image = name in ("image", "images")
        fields[name] = _listed(value) if is_image else _plain(value)
    for name in _LISTS_OF_STRUCTURES:
        if isinstance(fields.get(name), dict):  # a list of structures is kept as lists
            columns = fields[name]
            rows = zip(*columns.values(), strict=True)
            fields[name] = [dict(zip(columns, row, strict=True)) for row in rows]
    for name, names in label_names.items():
        fields[name] = names[fields[name]] if fields[name] >= 0 else None
    if not any(name in fields for name in (*_LISTS_OF_STRUCTURES, "caption")):
        caption = fields.pop("text") if "text" in fields else fields.get("label")
        fields["caption"] = caption
    return fields


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, np.ndarray) else value


def _plain(value: Any) -> Any:
    """Returns strings and lists for the bytes and arrays of an example."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
