"""Kept features in place of pixels: what rows are made of if the recipe names a feature cache.

An image is known by its content, so renamed files are found and changed ones are not.
`feature_store.py` holds the features.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence

import numpy as np

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.feature_store import FeatureStore
from metamorph_jax.data.image_files import shown
from metamorph_jax.data.images import ImageLoader
from metamorph_jax.data.media import Boxed, Crop, ImageBytes, Media, Tile, VideoFrame, media_key
from metamorph_jax.errors import UserError
from metamorph_jax.typing import Shaped

_CHUNK_BYTES = 2**20


def feature_key(media: Media, loader: ImageLoader, where: str) -> bytes:
    """Returns the key of what a loader makes of a medium.

    It is the SHA-256 of the loader's geometry and of the medium, with the SHA-256 of its file's
    bytes in the place of the path. The tower's size and family are the encoder's affair.

    Args:
        media: whose file is read, but not decoded.
        loader: that would open it.
        where: FILE:LINE of the record, for messages.

    Raises:
        BadSample: the file cannot be read.
    """
    try:
        content = media_key(_by_content(media, loader, where))
    except OSError as error:
        raise BadSample(
            "missing_media",
            f"{where}: {shown(media)} cannot be read, {error.strerror}; check it and its folder",
        ) from None
    text = f"{loader.geometry}\0{content}"
    return hashlib.sha256(text.encode()).digest()


def _by_content(media: Media, loader: ImageLoader, where: str) -> Media:
    """Returns a medium that is called by its content."""
    if isinstance(media, ImageBytes):
        return media
    if isinstance(media, VideoFrame):
        real = loader.resolve_video(media.video, where)
        return dataclasses.replace(media, video=_hash_file(real, *_state(real)))
    if isinstance(media, Crop | Boxed | Tile):
        return dataclasses.replace(media, image=_by_content(media.image, loader, where))
    real = loader.resolve(media, where)
    return _hash_file(real, *_state(real))


def _state(real: str) -> tuple[int, int]:
    """Returns what changes with a file's content, or with the list of a folder's files."""
    status = os.stat(real)
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=2**16)
def _hash_file(real: str, size: int, mtime_ns: int) -> str:
    """Returns "sha256:" and the hash of a file, or of all files of a folder of frames.

    Args:
        real: a path that may be read.
        size: of the file; with the time of its last change, tells whether the hash still holds.
        mtime_ns: of the file.
    """
    digest = hashlib.sha256()
    if os.path.isdir(real):
        for name in sorted(entry.name for entry in os.scandir(real) if entry.is_file()):
            path = os.path.join(real, name)
            digest.update(f"{name}\0{_hash_file(path, *_state(path))}\0".encode("utf-8", "replace"))
    else:
        with open(real, "rb", buffering=0) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return "sha256:" + digest.hexdigest()


class FeatureLoader:
    """Looks up what an `ImageLoader` and the tower would make; used in the loader's place.

    Args:
        store: the features.
        images: loader of the images that they are of.
    """

    def __init__(self, store: FeatureStore, images: ImageLoader):
        self.store, self.images = store, images

    def load_all(self, medias: Sequence[Media], where: str) -> list[Shaped[np.ndarray, "P E"]]:
        """Returns the features of the media of a record (read-only).

        Args:
            medias: in any order.
            where: FILE:LINE of the record, for messages.

        Raises:
            BadSample: a medium cannot be loaded, as it could not without a cache.
            UserError: it can, but has no features here, or they are damaged.
        """
        found = []
        for media in medias:
            features = self.store.get(feature_key(media, self.images, where))
            if features is None:
                # What could not be encoded is not in the cache: then this tells why.
                self.images.load_all(medias, where)
                raise UserError(
                    f"{where}: image {shown(media)} is not among the {len(self.store):,} of the "
                    f"feature cache {self.store.folder}; it was added or changed since, or the "
                    f"recipe is not the one that it was written for (image_geometry="
                    f"{self.images.geometry!r}); run cache_features again, which adds what is "
                    "missing"
                )
            found.append(features)
        return found
