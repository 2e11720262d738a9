"""Latents of all pictures, computed once by the frozen autoencoder and kept on disk.

    FOLDER/KEY/00000000.safetensors   `latents` float32 [n, channels, rows, columns]; `is_bad` uint8
                                      [n], 1 where a picture could not be used

KEY is a hash of the autoencoder, the list of pictures and the size of the latents, so that one
folder serves several runs, and no run the wrong latents. A file appears whole or not at all;
building goes on where it was stopped. Reading maps the files, and keeps nothing in memory.
"""

import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from metamorph_jax.data.faults import BadSample
from metamorph_jax.errors import UserError
from metamorph_jax.typing import Float
from metamorph_jax.visualizer.latents import VaeLatents
from metamorph_jax.visualizer.pictures import Pictures, painted_square
from metamorph_jax.visualizer.schema import LatentsConfig

PICTURES_PER_FILE = 1024  # 64 MiB at the size of Stable Diffusion
_BATCH_SIZE = 16
_MAX_OPEN = 256  # files; each holds a descriptor
_ROUTE = "float32 posterior mean, bicubic middle square"  # change them with the arithmetic
_PADDED_ROUTE = "float32 posterior mean, bicubic, padded with grey"


class LatentCache:
    """Latents by number of the picture.

    Args:
        folder: of one key.
        pictures: that the latents are of.
    """

    def __init__(self, folder: Path, pictures: Pictures):
        self._folder, self._pictures = folder, pictures

    def row(self, index: int) -> Float[Tensor, "channels rows columns"]:
        """Returns the latents of one picture.

        Raises:
            BadSample: the picture could not be used when its latents were due.
        """
        number, within = divmod(index, PICTURES_PER_FILE)
        file = _file(self._folder, number)
        opened = _open(file)
        if opened.get_slice("is_bad")[within].item():
            name = self._pictures.names[index]
            raise BadSample(
                "unreadable_media",
                f"{name}: could not be used when {file} was made; delete that to try again",
            )
        return opened.get_slice("latents")[within]


def build_cache(
    folder: Path,
    pictures: Pictures,
    codec: VaeLatents,
    config: LatentsConfig,
    vae_fingerprint: str,
    *,
    view: str = "squash",
    num_workers: int = 0,
    share: tuple[int, int] = (0, 1),
    report: Callable[[int], None] = lambda count: None,
) -> LatentCache:
    """Computes what is missing of a cache; returns it.

    Args:
        folder: for caches of all keys.
        pictures: whose latents are kept.
        codec: the frozen autoencoder.
        config: the latents' size.
        vae_fingerprint: of the autoencoder.
        view: of the recipe's model; "pad" shows the autoencoder more than the middle.
        num_workers: processes that decode pictures.
        share: (number of this process, processes in all); each makes every n-th file.
        report: is told how many pictures are done.

    Raises:
        UserError: the disk is full or not writable; what was finished stays.
    """
    key = _key(pictures, config, vae_fingerprint, view)
    place = folder / key
    numbers = range(share[0], math.ceil(len(pictures) / PICTURES_PER_FILE), share[1])
    missing = [number for number in numbers if not _is_whole(_file(place, number))]
    try:
        place.mkdir(parents=True, exist_ok=True)
        loader = _loader(_Squares(pictures, config.picture_size, view), missing, num_workers)
        for number in missing:
            _write(_file(place, number), loader, _members(pictures, number), codec)
            report(min((number + 1) * PICTURES_PER_FILE, len(pictures)))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{place}: latents could not be written ({error})") from error
    return LatentCache(place, pictures)


class _Squares(Dataset):
    """Pictures as the autoencoder sees them: (uint8 pixels, whether they are of no use)."""

    def __init__(self, pictures: Pictures, size: int, view: str):
        self.pictures, self._size, self._view = pictures, size, view

    def __getitem__(self, index: int) -> tuple[Tensor, bool]:
        try:
            square = painted_square(self.pictures.open(index), self._size, self._view)
        except BadSample:
            return torch.zeros((self._size, self._size, 3), dtype=torch.uint8), True
        return torch.from_numpy(square.copy()), False


def _loader(squares: _Squares, missing: list[int], num_workers: int) -> Iterator[list[Tensor]]:
    """Returns batches of all pictures of the missing files; a batch is of one file."""
    batches = [
        members[start : start + _BATCH_SIZE]
        for members in (_members(squares.pictures, number) for number in missing)
        for start in range(0, len(members), _BATCH_SIZE)
    ]
    return iter(DataLoader(squares, batch_sampler=batches, num_workers=num_workers))


def _write(file: Path, loader: Iterator[list[Tensor]], members: range, codec: VaeLatents) -> None:
    """Writes one file, from the next batches."""
    latents, flags = [], []
    for _ in range(0, len(members), _BATCH_SIZE):
        squares, is_bad = next(loader)
        latents.append(codec.encode(squares).float().cpu())
        flags.append(is_bad.to(torch.uint8))
    temporary = file.with_name(f"{file.name}.tmp-{os.getpid()}")
    try:
        save_file({"latents": torch.cat(latents), "is_bad": torch.cat(flags)}, temporary)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _members(pictures: Pictures, number: int) -> range:
    """Returns the pictures of one file."""
    begin = number * PICTURES_PER_FILE
    return range(begin, min(begin + PICTURES_PER_FILE, len(pictures)))


def _key(pictures: Pictures, config: LatentsConfig, vae_fingerprint: str, view: str) -> str:
    names = hashlib.sha256(pictures.names.bytes.tobytes()).hexdigest()
    size = [config.channels, config.size, config.picture_size]
    route = _PADDED_ROUTE if view == "pad" else _ROUTE
    facts = json.dumps([vae_fingerprint, names, size, route])
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.safetensors"


def _is_whole(file: Path) -> bool:
    """Whether a file is there and as long as its header says."""
    try:
        _open(file)
    except (OSError, SafetensorError):
        return False
    return True


@functools.lru_cache(maxsize=_MAX_OPEN)
def _open(file: Path) -> safe_open:
    return safe_open(file, framework="pt")
