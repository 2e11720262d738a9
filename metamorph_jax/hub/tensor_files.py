"""Tensors in a folder of safetensors files, read one at a time by name.

Files come from strangers. Nothing is unpickled, whatever a file is called; a header is believed
only after every range in it was checked against the file; an index may only name files of its own
folder. A tensor is mapped when it is asked for and let go with the last array that looks at it, so
that reading a model takes no more memory than its largest tensor.

**Source:** the safetensors format, https://github.com/huggingface/safetensors.
"""

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from metamorph_jax.errors import UserError

INDEX_FILE = "model.safetensors.index.json"
_WHOLE_FILE = "model.safetensors"
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_MAX_JSON_BYTES = 100_000_000
_MAX_DIMS, _MAX_NUMBERS = 8, 2**40  # of a tensor; numpy fails on more, even if one size is 0
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class TensorSpec(NamedTuple):
    """Where a tensor lies.

    Attributes:
        file: that holds it.
        offset: of its first byte in the file.
        shape: of the tensor.
        dtype: of its numbers.
    """

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


class TensorFolder:
    """The tensors of a folder by name.

    Args:
        folder: with `model.safetensors.index.json` and the files that it names, or else with
            `model.safetensors`, or else with `*.safetensors` files. What lies beside the first
            that is there (an adapter, the same weights under other names) is not read.

    Attributes:
        path: of the folder.
        specs: of every tensor by name.

    Raises:
        UserError: there are none, a file is damaged or no safetensors file, or the index names what
            is not there.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder)
        if not self.path.is_dir():
            raise UserError(f"{folder}: no such folder; a Hugging Face model's folder was expected")
        index = self.path / INDEX_FILE
        places = _read_index(index) if index.is_file() else None
        files = sorted(set(places.values())) if places else _find_files(self.path)
        if not files:
            raise UserError(_nothing_to_read(self.path))
        self.specs: dict[str, TensorSpec] = {}
        for file in files:
            for name, spec in read_header(file).items():
                if name in self.specs:
                    raise UserError(f"{name} is both in {self.specs[name].file} and in {file}")
                self.specs[name] = spec
        if places is not None:
            _check_index(index, places, self.specs)

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor, mapped read-only: only what is looked at is read from the disk."""
        spec = self.specs[name]
        if math.prod(spec.shape) == 0:
            return np.zeros(spec.shape, spec.dtype)
        raw = np.memmap(spec.file, np.uint8, "r", spec.offset, (_num_bytes(spec),))
        return np.asarray(raw).view(spec.dtype).reshape(spec.shape)


def _find_files(folder: Path) -> list[Path]:
    """Returns the files of a folder without an index."""
    whole = folder / _WHOLE_FILE
    return [whole] if whole.exists() else sorted(folder.glob("*.safetensors"))


def read_header(file: Path) -> dict[str, TensorSpec]:
    """Returns the tensors of a safetensors file by name.

    Raises:
        UserError: it is no plain file, or no intact safetensors file.
    """
    if not os.path.isfile(file):  # unlike Path's, says no to names that no file can have
        raise UserError(f"{file} {'is no plain file' if os.path.exists(file) else 'is missing'}")
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise _damaged(file, f"it has {size:,} bytes and claims a header of {length:,}")
        fields = _parse_json(stream.read(length), file)
    specs, end = {}, 8 + length
    entries = [(name, entry) for name, entry in fields.items() if name != "__metadata__"]
    for name, entry in sorted(entries, key=lambda item: _begin(file, *item)):
        spec = _read_entry(file, name, entry, data_start=8 + length)
        if spec.offset != end:
            raise _damaged(file, f"{name} begins at byte {spec.offset:,}, not at {end:,}")
        specs[name], end = spec, end + _num_bytes(spec)
    if end != size:
        raise _damaged(file, f"its tensors need {end:,} bytes, the file has {size:,}")
    return specs


def read_json(file: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        UserError: the file is missing, too large, or holds no JSON object.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing; a Hugging Face model's folder has it")
    if file.stat().st_size > _MAX_JSON_BYTES:
        raise UserError(f"{file} has {file.stat().st_size:,} bytes, too many for what it should be")
    return _parse_json(file.read_bytes(), file)


def _read_index(index: Path) -> dict[str, Path]:
    """Returns the file of each tensor; only files of the index's own folder are allowed."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f'{index}: "weight_map" should name the file of every tensor')
    for name, file in places.items():
        if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
            raise UserError(
                f"{index}: {name} is said to be in {file!r}; only files beside the index are read"
            )
        if not file.endswith(".safetensors"):
            raise UserError(f"{index}: {name} is said to be in {file!r}, which is no .safetensors")
    return {name: index.parent / file for name, file in places.items()}


def _check_index(index: Path, places: dict[str, Path], specs: dict[str, TensorSpec]) -> None:
    """Raises a UserError unless the index and the headers of its files agree."""
    for name, file in places.items():
        if name not in specs or specs[name].file != file:
            raise UserError(
                f"{index}: {name} is not in {file.name}; a file may be of another model"
            )
    if surplus := sorted(specs.keys() - places.keys()):
        raise UserError(
            f"{index}: does not know {surplus[0]}, which {specs[surplus[0]].file} holds"
        )


def _parse_json(content: bytes, file: Path) -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"no JSON where it should be, {error}") from None
    if not isinstance(fields, dict):
        raise _damaged(file, "no JSON object where one should be")
    return fields


def _begin(file: Path, name: str, entry: Any) -> int:
    """Returns where an entry says that its tensor begins."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise _damaged(file, f"{name} has data_offsets {offsets!r}")
    return offsets[0]


def _read_entry(file: Path, name: str, entry: dict[str, Any], data_start: int) -> TensorSpec:
    """Returns one tensor's place after checking that dtype, shape and bytes agree."""
    begin, end = entry["data_offsets"]
    stored, shape = entry.get("dtype"), entry.get("shape")
    dtype = DTYPES.get(stored) if isinstance(stored, str) else None
    if dtype is None:
        known = ", ".join(DTYPES)
        raise UserError(f"{file}: {name} is of dtype {stored!r}; readable are {known}")
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise _damaged(file, f"{name} has the shape {shape!r}")
    if len(shape) > _MAX_DIMS or math.prod(size or 1 for size in shape) > _MAX_NUMBERS:
        raise _damaged(file, f"{name} has {len(shape)} sizes, {shape[:9]}: beyond any tensor")
    spec = TensorSpec(file, data_start + begin, tuple(shape), dtype)
    if end - begin != _num_bytes(spec):
        needed = _num_bytes(spec)
        raise _damaged(file, f"{name} {dtype}{shape} needs {needed:,} bytes, not {end - begin:,}")
    return spec


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _num_bytes(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * spec.dtype.itemsize


def _damaged(file: Path, why: str) -> UserError:
    what = "is no intact safetensors file" if file.suffix == ".safetensors" else "is damaged"
    return UserError(f"{file} {what}: {why}; get it again from where it came from")


def _nothing_to_read(folder: Path) -> str:
    """Returns what to say of a folder without safetensors files."""
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLED)
    if pickled:
        return (
            f"{folder}: holds pickled weights only ({', '.join(pickled[:3])}), which can run any "
            "program when they are read, so they are not; get the safetensors version, or convert "
            "them where you trust them: model.save_pretrained(FOLDER) of transformers writes it"
        )
    found = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
    return f"{folder}: no .safetensors file there (found {found})"
