"""Features on disk: a folder of safetensors files, read in place by key.

    FOLDER/HASH.safetensors   `features` [n, P, E] float32 or bfloat16; `keys` [n, 32] uint8;
                              `checksums` [n] uint32, the CRC-32 of each key with its features;
                              metadata `encoder_fingerprint`

A key is the SHA-256 of an image's content (`feature_loader.py`). A file appears whole or not at
all, so a writer that was killed goes on where it stopped. Who may write which features is decided
in `training/feature_cache.py`.
"""

import dataclasses
import functools
import hashlib
import json
import mmap
import os
import time
import zlib
from pathlib import Path
from typing import Any, Literal, Self

import ml_dtypes
import numpy as np

from metamorph_jax.errors import UserError
from metamorph_jax.typing import Float, Shaped

KEY_BYTES = 32
MAX_SHARD_BYTES = 256 * 2**20
MAX_SHARD_SECS = 300.0  # what a killed writer loses at most
_SUFFIX, _PARTIAL = ".safetensors", ".partial"
_ENCODER = "encoder_fingerprint"
_MAX_MAPPED = 256  # files; each mapping holds a file descriptor
_DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}
_AGAIN = "python -m metamorph_jax.cache_features computes what is missing"


@dataclasses.dataclass(frozen=True)
class _Shard:
    """One file: what its header says, offsets counted from the beginning of the file."""

    path: str
    fingerprint: str
    dtype: np.dtype
    shape: tuple[int, int]  # P, E
    count: int
    num_bytes: int  # of the file
    features_offset: int
    keys_offset: int
    checksums_offset: int

    @property
    def row_bytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def damaged(self, what: str) -> UserError:
        """Returns the complaint."""
        return _damaged(self.path, what)


def _damaged(path: str, what: str) -> UserError:
    return UserError(
        f"{path}: {what}; a file of a feature cache was expected: delete it, then {_AGAIN}"
    )


class FeatureStore:
    """Features by key, mapped into memory and never copied.

    Threads may share one. A pickled copy opens the folder again, and a forked process may go on
    with its parent's. In memory are 16 bytes an image.

    Args:
        folder: that `FeatureWriter` wrote.

    Attributes:
        fingerprint: of the encoder.
        dtype: of the features.
        shape: P, E of one image.

    Raises:
        UserError: there are no features, a file is damaged, or encoders are mixed.
    """

    fingerprint: str
    dtype: np.dtype
    shape: tuple[int, int]

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = os.fspath(folder)
        self._open()

    def _open(self) -> None:
        paths = sorted(str(path) for path in Path(self.folder).glob(f"*{_SUFFIX}"))
        if not paths:
            raise UserError(
                f"{self.folder}: no feature cache is here; write it with "
                "python -m metamorph_jax.cache_features, or leave the recipe's data.features empty"
            )
        self._shards, keys = [], []
        for path in paths:
            shard, own = _read_shard(path)
            self._shards.append(shard)
            keys.append(own)
        first = self._shards[0]
        self.fingerprint, self.dtype, self.shape = first.fingerprint, first.dtype, first.shape
        for shard in self._shards:
            if (shard.fingerprint, shard.dtype, shard.shape) != (
                self.fingerprint,
                self.dtype,
                self.shape,
            ):
                raise UserError(
                    f"{self.folder} mixes features of two encoders ({first.path}: "
                    f"{first.fingerprint[:12]}, {shard.path}: {shard.fingerprint[:12]}); give each "
                    "encoder a folder of its own"
                )
        self._starts = np.cumsum([0] + [shard.count for shard in self._shards])
        # Searched by the first eight bytes of the keys; the whole keys stay in the files.
        heads = np.concatenate([own[:, :8].copy().view(">u8")[:, 0] for own in keys])
        self._order = np.argsort(heads, kind="stable")
        self._heads = heads[self._order].astype(np.uint64)
        self._map = functools.lru_cache(maxsize=_MAX_MAPPED)(_map_shard)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, key: bytes) -> bool:
        return self._find(key) is not None

    def get(self, key: bytes) -> Shaped[np.ndarray, "P E"] | None:
        """Returns the features of an image, read-only and in place; None: they are not here.

        Raises:
            UserError: they are damaged; names the file.
        """
        place = self._find(key)
        if place is None:
            return None
        shard, row = place
        data = self._map(shard)
        start = shard.features_offset + row * shard.row_bytes
        view = memoryview(data)[start : start + shard.row_bytes]
        offset = shard.checksums_offset + 4 * row
        if zlib.crc32(view, zlib.crc32(key)) != int.from_bytes(data[offset : offset + 4], "little"):
            raise shard.damaged(f"the features of image {row} are not what was written")
        return np.frombuffer(view, shard.dtype).reshape(shard.shape)

    def keys(self) -> set[bytes]:
        """Returns all keys."""
        return {
            self._key(self._map(shard), shard, row)
            for shard in self._shards
            for row in range(shard.count)
        }

    def _find(self, key: bytes) -> tuple[_Shard, int] | None:
        """Returns the file and the row of a key."""
        head = np.uint64(int.from_bytes(key[:8], "big"))
        position = int(np.searchsorted(self._heads, head))
        while position < len(self._heads) and self._heads[position] == head:
            number = int(self._order[position])
            index = int(np.searchsorted(self._starts, number, side="right")) - 1
            shard, row = self._shards[index], number - int(self._starts[index])
            if self._key(self._map(shard), shard, row) == key:
                return shard, row
            position += 1
        return None

    @staticmethod
    def _key(data: mmap.mmap, shard: _Shard, row: int) -> bytes:
        start = shard.keys_offset + row * KEY_BYTES
        return data[start : start + KEY_BYTES]


def _read_shard(path: str) -> tuple[_Shard, Shaped[np.ndarray, "n key_bytes"]]:
    """Returns what a file's header says, and its keys; the format is that of safetensors."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise _damaged(path, "the file is cut off")
        try:
            shard = _parse_header(path, json.loads(file.read(length)), 8 + length)
            file.seek(shard.keys_offset)
            keys = np.frombuffer(file.read(shard.count * KEY_BYTES), np.uint8)
            keys = keys.reshape(-1, KEY_BYTES)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise _damaged(path, "its header cannot be read") from None
    if shard.num_bytes != size or len(keys) != shard.count:
        raise _damaged(path, f"the file has {size:,} of {shard.num_bytes:,} bytes")
    return shard, keys


def _parse_header(path: str, header: dict[str, Any], start: int) -> _Shard:
    """Returns what a decoded header says.

    Args:
        path: of the file.
        header: of safetensors: {name: {"dtype", "shape", "data_offsets"}}.
        start: offset of the data in the file.

    Raises:
        ValueError: it is another header; so are KeyError, TypeError and AttributeError.
    """
    parts = [header[name] for name in ("features", "keys", "checksums")]
    (count, num_tokens, dim), kind = parts[0]["shape"], parts[0]["dtype"]
    ends = [part["data_offsets"] for part in parts]
    shard = _Shard(
        path=path,
        fingerprint=header["__metadata__"][_ENCODER],
        dtype=_DTYPES[kind],
        shape=(num_tokens, dim),
        count=count,
        num_bytes=start + max(end for _, end in ends),
        features_offset=start + ends[0][0],
        keys_offset=start + ends[1][0],
        checksums_offset=start + ends[2][0],
    )
    sizes = [end - begin for begin, end in ends]
    if sizes != [count * shard.row_bytes, count * KEY_BYTES, count * 4]:
        raise ValueError("sizes and shapes differ")
    return shard


def _map_shard(shard: _Shard) -> mmap.mmap:
    """Returns a file's bytes; reading past the end of one that shrank would end the process."""
    with open(shard.path, "rb") as file:
        if os.fstat(file.fileno()).st_size != shard.num_bytes:
            raise shard.damaged("the file has changed since it was opened")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class FeatureWriter:
    """Adds features to a folder, in files of `MAX_SHARD_BYTES`; one process at a time.

    A context manager; at its end, or at an error, what has been added is written.

    Args:
        folder: created if need be; what it holds stays.
        fingerprint: of the encoder.
        dtype: that features are rounded to.
        shape: P, E of one image.

    Raises:
        UserError: the folder holds features of another encoder, or a damaged file.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        fingerprint: str,
        dtype: Literal["float32", "bfloat16"],
        shape: tuple[int, int],
    ):
        self.folder = Path(folder)
        self._fingerprint, self._shape = fingerprint, shape
        self._dtype = _DTYPES["F32" if dtype == "float32" else "BF16"]
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(f"*{_PARTIAL}"):
            left.unlink()  # of a writer that was killed
        self._keys: set[bytes] = set()
        if any(self.folder.glob(f"*{_SUFFIX}")):
            store = FeatureStore(self.folder)
            check_fingerprint(store, fingerprint)
            self._keys = store.keys()
        self._pending: dict[bytes, Shaped[np.ndarray, "P E"]] = {}
        self._pending_since = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def add(self, key: bytes, features: Float[np.ndarray, "P E"]) -> None:
        """Keeps the features of an image; what is there already stays."""
        if key in self._keys:
            return
        if len(key) != KEY_BYTES or features.shape != self._shape:
            raise ValueError(f"key of {len(key)} bytes, features {features.shape}")
        self._keys.add(key)
        self._pending[key] = features.astype(self._dtype)
        size = len(self._pending) * self._pending[key].nbytes
        if size >= MAX_SHARD_BYTES or time.monotonic() - self._pending_since >= MAX_SHARD_SECS:
            self.flush()

    def flush(self) -> None:
        """Writes what has been added since the last file."""
        self._pending_since = time.monotonic()
        if not self._pending:
            return
        from safetensors.numpy import save_file

        keys, rows = list(self._pending), np.stack(list(self._pending.values()))
        rows_bytes = rows.view(np.uint8)  # NumPy gives no buffer of bfloat16
        sums = [zlib.crc32(row, zlib.crc32(key)) for key, row in zip(keys, rows_bytes, strict=True)]
        tensors = {
            "features": rows,
            "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES),
            "checksums": np.array(sums, np.uint32),
        }
        name = hashlib.sha256(tensors["keys"]).hexdigest()[:16] + _SUFFIX
        partial = self.folder / (name + _PARTIAL)
        save_file(tensors, partial, {_ENCODER: self._fingerprint})
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        partial.replace(self.folder / name)
        self._pending = {}


def check_fingerprint(store: FeatureStore, fingerprint: str) -> None:
    """Raises a UserError unless the features are those of the encoder with this fingerprint."""
    if store.fingerprint != fingerprint:
        raise UserError(
            f"{store.folder}: the cache was made by another encoder ({store.fingerprint[:12]}, "
            f"this one is {fingerprint[:12]}): run cache_features again, into another folder, with "
            "the recipe and the checkpoint that you train from"
        )
