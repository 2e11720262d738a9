"""Images that are only read become several views: Example -> Example, for `anyres` recipes.

A view is an image like any other from here on: rows have places for views, the tower encodes them
alike, and `Example.images` lists them, each image followed by its tiles. `anyres.py` knows which
views there are and in what order their patches are read. Images of answers, which the model paints
at one size, and frames of videos stay as they are.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from metamorph_jax.config.schema_run import DataConfig
from metamorph_jax.data.anyres import AnyresPlan, Size, anyres_plan, parse_pinpoints
from metamorph_jax.data.conversation import Conversation, Image
from metamorph_jax.data.media import Media, Tile, VideoFrame
from metamorph_jax.data.templates import Example
from metamorph_jax.typing import NEWLINE, TEXT


@dataclasses.dataclass(frozen=True)
class ViewLayout:
    """How images of any size become views and tokens.

    Attributes:
        pinpoints: resolutions of the large copy to choose from, (width, height) in pixels.
        tile: side of a view, in pixels.
        side: visual tokens along a side of a view; P = side * side.
        max_tiles: the tiles of an image have at most about the tokens of so many views; None: as
            many as they have.
    """

    pinpoints: tuple[Size, ...]
    tile: int
    side: int
    max_tiles: int | None

    @property
    def has_mixtures(self) -> bool:
        """Whether a visual token may be mixed of several."""
        return self.max_tiles is not None

    def plan(self, size: Size) -> AnyresPlan:
        """Returns the plan of an image of (width, height)."""
        return anyres_plan(size, self.pinpoints, self.tile, self.side, max_tiles=self.max_tiles)


def view_layout(data: DataConfig, image_size: int, num_visual_tokens: int) -> ViewLayout | None:
    """Returns the layout of a stage; None: every image is one view.

    Args:
        data: of the stage.
        image_size: side of the tower's input, in pixels.
        num_visual_tokens: P, a square number if there are several views.

    Raises:
        UserError: its pinpoints are no grids.
    """
    if not data.is_anyres:
        return None
    return ViewLayout(
        pinpoints=parse_pinpoints(data.image_grid_pinpoints, image_size),
        tile=image_size,
        side=round(num_visual_tokens**0.5),
        max_tiles=data.max_tiles,
    )


def expand_images(
    example: Example, layout: ViewLayout | None, size_of: Callable[[Media], Size]
) -> Example:
    """Returns an example in which every image that is only read is shown as several views.

    Args:
        example: each of its images has P tokens.
        layout: None: it is returned as it is.
        size_of: (width, height) of an image, upright.

    **Source:** LLaVA-NeXT's `prepare_inputs_labels_for_multimodal`, `spatial_unpad`.
    """
    if layout is None:
        return example
    plans = {
        image: layout.plan(size_of(media))
        for image, media in enumerate(example.images)
        if _has_views(media, example.image_is_answer[image])
    }
    num_views = [plans[i].num_views if i in plans else 1 for i in range(len(example.images))]
    expanded = _with_views(example, plans, num_views, layout.side**2)
    mixture = expanded.sources if any(plan.resized for plan in plans.values()) else None
    for image, plan in plans.items():
        view = sum(num_views[:image])
        here, first = expanded.image_index == view, view * layout.side**2
        index, (sources, weights) = plan.index, plan.mixture
        expanded.visual_index[here] = np.where(index < 0, NEWLINE, index + first)
        if mixture is not None:
            mixture.sources[here] = np.where(sources < 0, TEXT, sources + first)
            mixture.weights[here] = weights
    return dataclasses.replace(expanded, mixture=mixture)


def all_views(
    conversation: Conversation, layout: ViewLayout | None, size_of: Callable[[Media], Size]
) -> list[Media]:
    """Returns what `Example.images` holds of a conversation once it is expanded, in some order."""
    found: list[Media] = []
    for turn in conversation.turns:
        for media in (part.media for part in turn.parts if isinstance(part, Image)):
            if layout is not None and _has_views(media, turn.is_answer):
                found += _views_of(media, layout.plan(size_of(media)))
            else:
                found.append(media)
    return found


def _has_views(media: Media, is_answer: bool) -> bool:
    return not is_answer and not isinstance(media, VideoFrame)


def _views_of(media: Media, plan: AnyresPlan) -> tuple[Media, ...]:
    tiles = (Tile(media, plan.resolution, number) for number in range(plan.num_views - 1))
    return media, *tiles


def _with_views(
    example: Example, plans: dict[int, AnyresPlan], num_views: list[int], num_visual_tokens: int
) -> Example:
    """Returns an example with the views and positions of the plans, not yet with their tokens."""
    # The first position of an image becomes all of them, its others none.
    counts = np.ones(len(example), np.int64)
    for image, plan in plans.items():
        begin, *rest = np.flatnonzero(example.image_index == image)
        counts[begin], counts[rest] = plan.num_tokens, 0
    chosen = np.repeat(np.arange(len(example)), counts)
    tiles = np.cumsum([0, *(number - 1 for number in num_views)], dtype=np.int32)
    before = np.where(example.image_index < 0, 0, tiles[example.image_index])
    views = [
        _views_of(media, plans[image]) if image in plans else (media,)
        for image, media in enumerate(example.images)
    ]
    return dataclasses.replace(
        example,
        tokens=example.tokens[chosen],
        supervised=example.supervised[chosen],
        visual_index=(example.visual_index + before * num_visual_tokens)[chosen],
        image_index=(example.image_index + before)[chosen],
        images=tuple(itertools.chain(*views)),
        image_is_answer=tuple(np.repeat(example.image_is_answer, num_views).tolist()),
    )
