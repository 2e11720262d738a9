"""Training pictures: their names, files of any size opened safely, and the squares made of them.

A file that cannot be used is a `BadSample`; quarantine.py decides what follows.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from metamorph_jax.data import image_files
from metamorph_jax.data.geometry import GREY, pad_to_square
from metamorph_jax.errors import UserError
from metamorph_jax.typing import Shaped

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_NEWLINE = 10


class Names:
    """Many paths in little memory: their bytes one after the other, and where each one ends."""

    def __init__(self, lines: bytes):
        if lines and not lines.endswith(b"\n"):
            lines += b"\n"
        self.bytes = np.frombuffer(lines, np.uint8)
        self._ends = np.flatnonzero(self.bytes == _NEWLINE)

    @classmethod
    def of(cls, paths: Iterable[str]) -> "Names":
        """Returns the names of a list."""
        return cls("".join(f"{path}\n" for path in paths).encode("utf-8", "surrogateescape"))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        begin = 0 if index == 0 else self._ends[index - 1] + 1
        return os.fsdecode(self.bytes[begin : self._ends[index]].tobytes().rstrip(b"\r"))


class Pictures:
    """Image files below one folder, by number.

    Args:
        root: folder that no path may leave.
        names: paths relative to it.
        listed_in: who names them, for messages.
    """

    def __init__(self, root: Path, names: Names, listed_in: str):
        self.names = names
        self._root, self._listed_in = os.path.realpath(root), listed_in

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> Image.Image:
        """Returns a picture as upright RGB, at its own size.

        Raises:
            BadSample: it is missing, damaged, too large, or outside of the folder.
        """
        name = self.names[index]
        where = f"{self._listed_in}: picture {index}"
        data = image_files.read_file(name, self._root, where)
        return image_files.decode(data, f"{where}: {image_files.shown(name)}")


def find_pictures(root: Path, listed_in: Path | None) -> Pictures:
    """Returns the pictures that a text file lists, one path a line, or else all below `root`.

    Raises:
        UserError: there are none.
    """
    if listed_in is not None:
        if not listed_in.is_file():
            raise UserError(f"--images={listed_in}: no such file; one path a line was expected")
        names, where = Names(listed_in.read_bytes()), f"{listed_in}"
    else:
        found = (path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES)
        names = Names.of(sorted(str(path.relative_to(root)) for path in found))
        where = f"--image_root={root}"
    if not len(names):
        raise UserError(f"{where}: no pictures ({', '.join(_SUFFIXES)})")
    return Pictures(root, names, where)


def names_in_metadata(metadata: dict[str, str], count: int, file: Path) -> Names:
    """Returns the image paths that a features file lists.

    Raises:
        UserError: there is no such list, or it is of another length.
    """
    try:
        paths = json.loads(metadata.get("images", "null"))
    except json.JSONDecodeError:
        paths = None
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise UserError(f'{file}: its metadata has no "images", a JSON list of image paths')
    if any("\n" in path for path in paths):
        raise UserError(f"{file}: an image path with a line break in it; rename that image")
    if len(paths) != count:
        raise UserError(f"{file}: features of {count} pictures, but {len(paths)} image paths")
    return Names.of(paths)


def seen_square(image: Image.Image, size: int, view: str) -> Shaped[np.ndarray, "size size 3"]:
    """Returns what the encoder sees of a picture, at another size; `view` as in schema.py."""
    return squashed(image, size) if view == "squash" else painted_square(image, size, view)


def painted_square(image: Image.Image, size: int, view: str) -> Shaped[np.ndarray, "size size 3"]:
    """Returns what the autoencoder sees of a picture, at another size."""
    if view != "pad":
        return middle_square(image, size)
    return squashed(pad_to_square(image, GREY), size)


def middle_square(image: Image.Image, size: int) -> Shaped[np.ndarray, "size size 3"]:
    """Returns the largest square in the middle of a picture as uint8 pixels at another size.

    **Source:** MetaMorph's visualizer training (what the autoencoder sees); the cut comes before
    the resizing here, which only the outermost pixels can tell.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    middle = image.crop((left, top, left + side, top + side))
    return np.asarray(middle.resize((size, size), Image.Resampling.BICUBIC))


def squashed(image: Image.Image, size: int) -> Shaped[np.ndarray, "size size 3"]:
    """Returns all of a picture as uint8 pixels of a square, as SigLIP's processor does."""
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
