"""Which media the sample made of a record shows, without templates, tokens or pixels."""

import functools
import os

from metamorph_jax.config.schema_run import SourceConfig
from metamorph_jax.data.conversation import Image
from metamorph_jax.data.image_files import resolve
from metamorph_jax.data.images import ImageLoader
from metamorph_jax.data.kinds import make_conversation
from metamorph_jax.data.media import Media
from metamorph_jax.data.sources import Source
from metamorph_jax.data.video import VideoInfo, probe_video


def record_media(
    source: Source,
    index: int,
    config: SourceConfig,
    loader: ImageLoader,
    key: str,
    max_images: int | None = None,
) -> tuple[Media, ...]:
    """Returns the media that the sample made of a record shows, in order.

    Args:
        source: opened.
        index: number of the record.
        config: of the source.
        loader: of the source's images.
        key: of the sample, see `make_conversation`.
        max_images: images that a row holds.

    Raises:
        BadSample: the record cannot be used.
    """
    record = source[index]
    info = functools.partial(_video_info, loader=loader, where=record.where)
    conversation = make_conversation(record, config, key, info, max_images)
    return tuple(
        part.media for turn in conversation.turns for part in turn.parts if isinstance(part, Image)
    )


def _video_info(path: str, loader: ImageLoader, where: str) -> VideoInfo:
    """Returns length and rate of a video, by its path as written in the record."""
    real = resolve(path, os.path.realpath(loader.root), where, "video", folders=True)
    return probe_video(real, where)
