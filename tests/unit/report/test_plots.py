"""Plots: valid SVG for long, short, and partly broken histories; the panels that make sense."""

import base64
import math
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest

from metamorph_jax.report import plots


def svg(uri):
    """Returns the parsed plot and its text."""
    kind, data = uri.split(",", 1)
    assert kind == "data:image/svg+xml;base64"
    text = base64.b64decode(data).decode()
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    return text


def history(count, **extra):
    return [
        {"step": s, "stage": "vpit", "stage_step": s, "text_loss": 1 / s, "grad_norm": 1.0, **extra}
        for s in range(1, count + 1)
    ]


@pytest.mark.parametrize("count", [1, 7, 500])
def test_curves_of_any_length(count):
    assert "<!-- losses -->" in svg(plots.stage_curves(history(count, cosine=0.5)))


def test_cosine_is_shown_only_where_there_are_answer_images():
    title = "<!-- cosine with the true tokens -->"
    assert title in svg(plots.stage_curves(history(5, cosine=0.5)))
    assert title not in svg(plots.stage_curves(history(5, cosine=0.0, visual_loss=0.0)))
    assert "<!-- visual -->" not in svg(plots.stage_curves(history(5, visual_loss=0.0)))


def test_nan_and_missing_values_leave_gaps():
    lines = history(6)
    lines[2]["text_loss"] = math.nan
    lines[3]["text_loss"] = math.inf
    del lines[4]["grad_norm"]
    svg(plots.stage_curves(lines))
    svg(plots.stage_curves([line | {"text_loss": math.nan} for line in lines]))


def test_throughput_shows_what_was_measured():
    text = svg(plots.throughput_curves(history(5, tokens_per_sec=10.0)))
    assert "<!-- tokens per second -->" in text
    assert "utilisation" not in text
    svg(plots.throughput_curves(history(3)))  # nothing measured yet


def test_confusion_matrix_prints_counts_and_leaves_settings_alone():
    before = dict(matplotlib.rcParams)
    counts = np.eye(3, 4, dtype=np.int64) * 37
    text = svg(plots.confusion_matrix(counts, "abc", ["a", "b", "c", "none"]))
    assert text.count("<!-- 37 -->") == 3
    assert "<!-- 0 -->" not in text
    assert dict(matplotlib.rcParams) == before


def test_same_history_gives_the_same_plot():
    first, second = (plots.stage_curves(history(9)) for _ in range(2))
    assert first == second
