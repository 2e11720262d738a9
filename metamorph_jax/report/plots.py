"""Curves and matrices as SVG inside data URIs, drawn by matplotlib without a display.

Each plot is an `<img>` of its own, so that two of them cannot share ids. The curves of a run are
here; `lint_plots.py` draws in the same style. Pictures of digits are in `pictures.py`.
"""

import base64
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from metamorph_jax.typing import Float, Integer

COLORS = ("#2a6f97", "#c8553d", "#588157", "#7d5ba6", "#b08900")
QUIET = "#5b6670"
_MAX_BINS = 120
_STYLE = {
    "svg.hashsalt": "metamorph_jax",  # ids are drawn from it: the same run gives the same page
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa5ad",
    "axes.labelcolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}

History = Sequence[Mapping[str, Any]]


def styled(draw: Callable[..., str]) -> Callable[..., str]:
    """Makes a function draw in this page's style, without a screen, and leave no setting behind."""

    @functools.wraps(draw)
    def draw_styled(*arguments):
        import matplotlib

        matplotlib.use("Agg")
        with matplotlib.rc_context(_STYLE):
            return draw(*arguments)

    return draw_styled


@styled
def stage_curves(history: History) -> str:
    """Returns the curves of one stage: losses, cosine where there is one, gradient norm.

    Args:
        history: lines of the metrics file that belong to the stage.
    """
    names = sorted({name for line in history for name in line})
    losses = [name for name in names if name.endswith("_loss") and _column(history, name).any()]
    panels = [("losses", losses or ["loss"], _span_decades(history, losses))]
    if any(line.get("cosine") for line in history):  # a stage without answer images has 0 always
        panels.append(("cosine with the true tokens", ["cosine"], False))
    if "grad_norm" in names:
        panels.append(("gradient norm, before clipping", ["grad_norm"], True))
    steps = _column(history, "stage_step")
    figure, axes = subplots(len(panels), height=2.5)
    for axis, (title, series, is_log) in zip(axes, panels, strict=True):
        for color, name in zip(COLORS, series, strict=False):
            label = name.removesuffix("_loss").replace("_", " ")
            _draw(axis, steps, _column(history, name), color, label if len(series) > 1 else None)
        axis.set_title(title)
        axis.set_xlabel("step of this stage")
        axis.xaxis.get_major_locator().set_params(integer=True)
        if is_log:
            axis.set_yscale("log")
        if len(series) > 1:
            axis.legend()
    return svg(figure)


@styled
def throughput_curves(history: History) -> str:
    """Returns tokens per second, MFU and data wait over the whole run."""
    panels = [
        ("tokens per second", "tokens_per_sec"),
        ("model FLOP utilisation", "mfu"),
        ("share of time waiting for data", "data_wait_fraction"),
    ]
    present = [(title, name) for title, name in panels if any(name in line for line in history)]
    steps = _column(history, "step")
    figure, axes = subplots(max(len(present), 1), height=2.1)
    for axis, (title, name) in zip(axes, present, strict=False):
        _draw(axis, steps, _column(history, name), COLORS[0], None)
        axis.set_title(title)
        axis.set_xlabel("step of the run")
        axis.set_ylim(bottom=0)
        for first in _stage_starts(history)[1:]:
            axis.axvline(first, color="#c5ccd1", linewidth=0.8, linestyle=":")
    return svg(figure)


@styled
def confusion_matrix(
    counts: Integer[np.ndarray, "rows columns"], rows: Sequence[str], columns: Sequence[str]
) -> str:
    """Returns a table of counts, shaded by its share of the row; zeros are left blank."""
    figure, axis = pyplot().subplots(figsize=(4.6, 4.1))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "white" if shares[row, column] > 0.5 else "#1d2328"
            axis.text(column, row, str(count), ha="center", va="center", color=color)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_xlabel("what the model said")
    axis.set_ylabel("what the scan shows")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return svg(figure)


def _draw(axis, steps: Float[np.ndarray, "n"], values: Float[np.ndarray, "n"], color, label):
    """Draws the mean of neighbouring steps over the band of their extremes."""
    known = np.isfinite(values)
    steps, values = steps[known], values[known]
    if not len(steps):
        return
    size = -(-len(steps) // _MAX_BINS)  # steps per bin
    bins = [slice(first, first + size) for first in range(0, len(steps), size)]
    x = [steps[part].mean() for part in bins]
    low, mean, high = (
        [reduce(values[part]) for part in bins] for reduce in (np.min, np.mean, np.max)
    )
    axis.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    marker = "o" if len(bins) == 1 else None
    axis.plot(x, mean, color=color, linewidth=1.4, label=label, marker=marker)


def _span_decades(history: History, names: Sequence[str]) -> bool:
    """Returns whether curves are so far apart that a linear axis would flatten some of them."""
    values = np.concatenate([_column(history, name) for name in names] or [np.zeros(1)])
    values = values[np.isfinite(values)]
    return len(values) > 0 and values.min() > 0 and values.max() > 20 * values.min()


def _column(history: History, name: str) -> Float[np.ndarray, "n"]:
    """Returns one metric at all lines, NaN where a line has none."""
    return np.array([float(line.get(name, np.nan)) for line in history])


def _stage_starts(history: History) -> list[int]:
    """Returns the first step of each stage, in order."""
    starts: dict[str, int] = {}
    for line in history:
        starts.setdefault(str(line.get("stage")), line["step"])
    return list(starts.values())


def subplots(count: int, height: float):
    """Returns a figure as wide as the page, and its `count` axes side by side.

    Args:
        count: of axes.
        height: in inches.
    """
    figure, axes = pyplot().subplots(1, count, figsize=(9.4, height), squeeze=False)
    return figure, axes[0]


def pyplot():
    """Returns matplotlib's pyplot, which is imported only when something is drawn."""
    import matplotlib.pyplot

    return matplotlib.pyplot


def svg(figure) -> str:
    """Returns a figure as a data URI and frees it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot().close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
