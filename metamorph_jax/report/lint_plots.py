"""Histograms of a stage's data, in the style of `plots.py`."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metamorph_jax.report.plots import COLORS, QUIET, styled, subplots, svg
from metamorph_jax.typing import Integer

_NUM_BINS = 40
_MIN_BARS = 6
_MAX_BARS = 10  # different values that get a bar each


class Lengths(NamedTuple):
    """A number of each example of a source."""

    name: str
    values: Integer[np.ndarray, "examples"]


@styled
def histograms(panels: Sequence[tuple[str, Sequence[Lengths], int | None]]) -> str:
    """Returns one histogram a panel, its sources stacked.

    Args:
        panels: title, numbers of each source, and a limit to be marked if examples come near it.
    """
    figure, axes = subplots(len(panels), height=2.6)
    for axis, (title, sources, limit) in zip(axes, panels, strict=True):
        _draw(axis, sources, limit)
        axis.set_title(title)
        axis.set_ylabel("examples")
        axis.yaxis.get_major_locator().set_params(integer=True)
    if 1 < len(panels[0][1]) <= len(COLORS):
        axes[0].legend()
    return svg(figure)


def _draw(axis, sources: Sequence[Lengths], limit: int | None) -> None:
    every = np.concatenate([source.values for source in sources])
    known = np.unique(every)
    if len(known) <= _MAX_BARS:
        places, heights = np.arange(len(known)), [_counts(s.values, known) for s in sources]
        axis.set_xticks(places, known)
        room = max(0.0, (_MIN_BARS - len(known)) / 2)  # or few bars would fill the panel
        axis.set_xlim(-0.7 - room, len(known) - 0.3 + room)
        width, align = 0.72, "center"
    else:
        top = int(every.max(initial=1)) + 1
        step = max(1, -(-top // _NUM_BINS))
        edges = np.arange(0, top + step, step)
        places, heights = edges[:-1], [np.histogram(s.values, edges)[0] for s in sources]
        width, align = step * 0.92, "edge"
        if limit is not None and top > 0.6 * limit:
            axis.axvline(limit, color=QUIET, linewidth=0.9, linestyle=":")
            axis.annotate(
                f"a row: {limit:,}",
                (limit, 1),
                xycoords=("data", "axes fraction"),
                xytext=(-4, -4),
                textcoords="offset points",
                ha="right",
                va="top",
                color=QUIET,
            )
    bottom = np.zeros(len(places), np.int64)
    for number, (source, height) in enumerate(zip(sources, heights, strict=True)):
        color = COLORS[number % len(COLORS)]
        axis.bar(places, height, width, bottom=bottom, align=align, color=color, label=source.name)
        bottom = bottom + height


def _counts(
    values: Integer[np.ndarray, "examples"], known: Integer[np.ndarray, "n"]
) -> Integer[np.ndarray, "n"]:
    return np.bincount(np.searchsorted(known, values), minlength=len(known))
