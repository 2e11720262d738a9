"""Tensors written in order to safetensors files, each made while the one before is written.

The library's own writer wants all tensors of a file in memory; a shard of an 8B model has 5 GB.
Reading is in `tensor_files.py`.

**Source:** the safetensors format, https://github.com/huggingface/safetensors.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metamorph_jax.checkpoints.ahead import one_ahead
from metamorph_jax.checkpoints.manifest import write_durably
from metamorph_jax.hub.copying import contiguous
from metamorph_jax.hub.tensor_files import DTYPES, INDEX_FILE

SINGLE_FILE = "model.safetensors"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SETTLE_BYTES = 2**27  # written before they are forced to the disk
_MAX_SHARD_BYTES = 5_000_000_000  # what Hugging Face's own tools write


class TensorToWrite(NamedTuple):
    """A tensor that is made when its turn comes.

    Attributes:
        shape: of the tensor.
        dtype: of its numbers.
        create: returns it, or yields it in pieces of rows, in order; is called in a thread.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    create: Callable[[], np.ndarray | Iterator[np.ndarray]]

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_folder(
    folder: Path,
    tensors: Mapping[str, TensorToWrite],
    on_written: Callable[[str], None] = lambda name: None,
    max_shard_bytes: int = _MAX_SHARD_BYTES,
) -> None:
    """Writes tensors in order, as one file or as shards with their index, and forces them to disk.

    Args:
        folder: which exists.
        tensors: by name; one that is written and the next are in memory, or pieces of them.
        on_written: is told each name when it is done.
        max_shard_bytes: of a file, unless one tensor alone is larger.
    """
    shards = _plan_shards(tensors, max_shard_bytes)
    if len(shards) == 1:
        write_file(folder / SINGLE_FILE, tensors, on_written)
        return
    places = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, {name: tensors[name] for name in names}, on_written)
        places |= dict.fromkeys(names, file)
    total = sum(tensor.num_bytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_durably(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")


def write_file(
    file: Path,
    tensors: Mapping[str, TensorToWrite],
    on_written: Callable[[str], None] = lambda name: None,
) -> None:
    """Writes tensors in order to one file and forces it to disk; see `write_folder`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.num_bytes
        entry = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = {**entry, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that tensors lie aligned
    with (
        file.open("wb") as stream,
        ThreadPoolExecutor(1, thread_name_prefix="settle") as settler,
        contextlib.closing(one_ahead(_pieces(tensors))) as pieces,
    ):
        stream.write(len(text).to_bytes(8, "little") + text)
        settled, settling = 0, None
        for name, piece in pieces:
            if piece is None:
                on_written(name)
                continue
            stream.write(piece.reshape(-1).view(np.uint8).data)
            if stream.tell() - settled >= _SETTLE_BYTES:
                if settling is not None:
                    settling.result()
                stream.flush()
                settled, settling = stream.tell(), settler.submit(_settle, stream.fileno())
        if settling is not None:
            settling.result()
        stream.flush()
        os.fsync(stream.fileno())


def _settle(descriptor: int) -> None:
    """Forces to disk what was written so far, and gives the memory that held it to what follows.

    Otherwise the disk would be idle for long and then busy for longer, and fresh memory is slower
    to come by. Runs in a thread, one at a time, while more is written.
    """
    os.fsync(descriptor)
    if hasattr(os, "posix_fadvise"):  # not on every system
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _pieces(tensors: Mapping[str, TensorToWrite]) -> Iterator[tuple[str, np.ndarray | None]]:
    """Yields the name and the content of each piece, and at the end of each tensor None."""
    for name, tensor in tensors.items():
        value, num_rows = tensor.create(), 0
        for piece in [value] if isinstance(value, np.ndarray) else value:
            if piece.shape[1:] != tensor.shape[1:] or piece.dtype != tensor.dtype:
                raise ValueError(f"{name} is {piece.dtype}{piece.shape}, announced {tensor[:2]}")
            num_rows += len(piece) if piece.ndim else 1
            yield name, contiguous(piece)
        if num_rows != (tensor.shape or (1,))[0]:
            raise ValueError(f"{name} has {num_rows:,} rows, announced {tensor[:2]}")
        yield name, None


def _plan_shards(tensors: Mapping[str, TensorToWrite], max_shard_bytes: int) -> list[list[str]]:
    """Returns the names of each file, in order."""
    shards: list[list[str]] = [[]]
    room = max_shard_bytes
    for name, tensor in tensors.items():
        if shards[-1] and tensor.num_bytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= tensor.num_bytes
    return shards
