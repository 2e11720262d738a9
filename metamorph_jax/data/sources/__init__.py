"""Data files of every format, as records by number.

    base          what a source offers
    jsonl         one JSON object a line
    json_list     one JSON list, as LLaVA publishes
    parquet       Hugging Face's tables, with images in the rows
    webdataset    tar shards
    array_record  JSON objects in Google's random-access container
    tfds          TensorFlow Datasets, without TensorFlow
    shards        many files behind one source
    index         where the records are: found once, kept beside the file

docs/formats.md shows each. What a record means is decided in `data/kinds/`.
"""

import os
import re

from metamorph_jax.data.sources.base import Source
from metamorph_jax.data.sources.json_list import JsonListSource
from metamorph_jax.data.sources.jsonl import JsonlSource
from metamorph_jax.data.sources.shards import ShardedSource, find_files, is_pattern
from metamorph_jax.errors import UserError

__all__ = ["Source", "find_files", "open_source"]

_SHARD_NUMBER = re.compile(r"-\d{5,}-of-\d{5,}$")  # TensorFlow Datasets puts it behind the ending


def open_source(path: str | os.PathLike[str]) -> Source:
    """Returns the records of a source.

    Args:
        path: a file that ends in .jsonl, .json, .parquet, .tar or .array_record; a pattern with *
            for several of them; `tfds:NAME/SPLIT`; or `shapes:KIND/SPLIT`.

    Raises:
        UserError: it cannot be used as a whole.
    """
    path = os.fspath(path)
    if path.startswith("tfds:"):
        from metamorph_jax.data.sources.tfds import TfdsSource

        return TfdsSource(path)
    if path.startswith("shapes:"):
        from metamorph_jax.data.shapes.source import ShapesSource

        return ShapesSource(path)
    if is_pattern(path):
        return ShardedSource(path, _open_file)
    return _open_file(path)


def _open_file(path: str) -> Source:
    ending = os.path.splitext(_SHARD_NUMBER.sub("", path))[1]
    if ending == ".jsonl":
        return JsonlSource(path)
    if ending == ".json":
        return JsonListSource(path)
    if ending == ".parquet":
        from metamorph_jax.data.sources.parquet import ParquetSource

        return ParquetSource(path)
    if ending == ".tar":
        from metamorph_jax.data.sources.webdataset import WebDatasetSource

        return WebDatasetSource(path)
    if ending == ".array_record":
        from metamorph_jax.data.sources.array_record import ArrayRecordSource

        return ArrayRecordSource(path)
    raise UserError(_advice(path))


def _advice(path: str) -> str:
    """Returns what is wrong with a path whose ending is not known."""
    known = (
        "expected .jsonl, .json, .parquet, .tar or .array_record, tfds:NAME/SPLIT or "
        "shapes:KIND/SPLIT"
    )
    if "{" in path:
        return f"{path}: braces are not expanded; name the shards by a pattern with *"
    if path.endswith((".gz", ".tgz", ".zst", ".bz2", ".xz")):
        return f"{path}: compressed files have no random access; unpack the file first ({known})"
    return f"{path}: the format of a data source is told by its ending; {known}"
