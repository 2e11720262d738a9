"""The patches of a video's frames -> its tokens, pooled, with newlines, as LLaVA-NeXT has them.

MetaMorph shows each frame as an image of its own and needs none of this. In numpy, as the model
computes it; see `anyres.py` for single images.
"""

import math
from typing import Literal

import numpy as np

from metamorph_jax.data.anyres import resize_map
from metamorph_jax.typing import Float

Pooling = Literal["average", "max", "bilinear"]
Newlines = Literal["grid", "frame", "one_token", "no_token"]


def pool_frames(
    features: Float[np.ndarray, "frames side side E"], pooling: Pooling
) -> Float[np.ndarray, "frames half half E"]:
    """Returns maps of half the side: of two by two patches their mean or largest, or a resized map.

    **Source:** LLaVA-NeXT's `get_2dPool` with stride 2. An odd last row and column are dropped by
    `average` and `max`; `bilinear` rounds the new side up.
    """
    frames, side, _, width = features.shape
    half = side // 2
    if pooling == "bilinear":
        new = math.ceil(side / 2)
        return np.stack([resize_map(frame, new, new) for frame in features])
    even = features[:, : 2 * half, : 2 * half]
    blocks = even.reshape(frames, half, 2, half, 2, width)
    return blocks.mean((2, 4)) if pooling == "average" else blocks.max((2, 4))


def frame_tokens(
    features: Float[np.ndarray, "frames side side E"],
    newline: Float[np.ndarray, "1 E"],
    newlines: Newlines,
) -> Float[np.ndarray, "n E"]:
    """Returns the tokens of a video.

    Args:
        features: maps of the frames, pooled if they are to be.
        newline: the learned vector.
        newlines: where it stands: at the end of every row of every frame (`grid`), of every frame,
            of the video (`one_token`), or nowhere.

    **Source:** LLaVA-NeXT's `mm_newline_position`.
    """
    frames, height, width, size = features.shape
    groups = {
        "grid": features.reshape(frames * height, width, size),
        "frame": features.reshape(frames, height * width, size),
        "one_token": features.reshape(1, -1, size),
        "no_token": features.reshape(1, -1, size),
    }[newlines]
    if newlines != "no_token":
        ends = np.broadcast_to(newline, (len(groups), 1, size))
        groups = np.concatenate([groups, ends], axis=1)
    return groups.reshape(-1, size)
