"""The sections that any run has: curves, throughput, seconds, recipe, versions."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metamorph_jax.metrics.progress import format_secs
from metamorph_jax.report import page, plots
from metamorph_jax.report.page import Html

_PACKAGES = (
    "metamorph_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "tokenizers",
    "torch",
    "diffusers",
    "scikit-learn",
    "matplotlib",
)
_LAST_STEPS = 20
_NOT_SHOWN = {"step", "stage_step", "stage", "learning_rate", "skipped_in_a_row", "step_secs"}
_NOT_SHOWN |= {"compile_secs", "cached_programs"}

History = Sequence[Mapping[str, Any]]


def by_stage(history: History) -> dict[str, list[Mapping[str, Any]]]:
    """Returns the lines of the metrics file by stage, in order of first appearance."""
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for line in history:
        stages.setdefault(str(line.get("stage", "run")), []).append(line)
    return stages


def last_values(history: History) -> dict[str, float]:
    """Returns the mean over the last steps of every metric that a person may want to compare."""
    last = history[-_LAST_STEPS:]
    names = [name for name in history[-1] if name not in _NOT_SHOWN]
    columns = {name: [line[name] for line in last if name in line] for name in names}
    return {
        name: float(np.mean(values))
        for name, values in columns.items()
        if all(isinstance(value, int | float) for value in values)
    }


def curves_section(history: History, visualizer: History = ()) -> tuple[str, Html]:
    """Returns the curves of every stage, what they end at, and throughput.

    Args:
        history: lines of the run's metrics file.
        visualizer: lines of that of its visualizer, shown like one more stage.
    """
    if not history:
        return page.section("Training curves", page.paragraph("No metrics were written."))
    stages = by_stage(history)
    if visualizer:
        stages["visualizer"] = [{"stage_step": line["step"], **line} for line in visualizer]
    blocks = []
    for name, lines in stages.items():
        caption = (
            f"Stage {name}, {len(lines)} steps. Lines are means over neighbouring steps, the band "
            "behind them runs from the smallest to the largest. Look for losses that still fall at "
            "the end (more steps would help) and for jumps of the gradient norm. Updates skipped "
            f"because they were not finite: {int(lines[-1].get('skipped_steps', 0))}."
        )
        curves = page.image(plots.stage_curves(lines), f"loss curves of stage {name}")
        blocks += [page.element("h3", f"Stage {name}"), page.figure(curves, caption)]
    throughput = page.image(plots.throughput_curves(history), "throughput over the run")
    caption = (
        "Tokens are counted without padding, and model FLOPs without recomputation. On a CPU the "
        "utilisation is relative to this machine's own float32 matrix product. Dotted lines: "
        "a new stage."
    )
    blocks += [page.element("h3", "Throughput"), page.figure(throughput, caption)]
    return page.section("Training curves", *blocks, _values_table(stages))


def _values_table(stages: Mapping[str, History]) -> Html:
    """Returns what every metric of every stage ends at."""
    columns = [last_values(lines) for lines in stages.values()]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [
        (name.replace("_", " "), *(f"{c[name]:.4g}" if name in c else "" for c in columns))
        for name in names
    ]
    title = page.element("h3", f"Mean of the last {_LAST_STEPS} steps")
    return page.join([title, page.table(("", *stages), rows)])


def seconds_section(seconds: Mapping[str, float]) -> tuple[str, Html]:
    """Returns how long each phase of the run took."""
    rows = [(name, format_secs(value)) for name, value in seconds.items()]
    rows.append((page.element("b", "together"), format_secs(sum(seconds.values()))))
    return page.section("Seconds per phase", page.table(("phase", "time"), rows))


def recipe_section(run: Path) -> tuple[str, Html]:
    """Returns the resolved recipe, and what it ran on."""
    file = run / "recipe.txt"
    recipe = file.read_text(encoding="utf-8") if file.is_file() else "no recipe.txt in this run"
    rows = [(name, version) for name, version in versions().items()]
    details = page.join([page.element("summary", "every value"), page.element("pre", recipe)])
    return page.section(
        "Recipe and versions",
        page.element("details", details, open="open"),
        page.element("h3", "Versions"),
        page.table(("", ""), rows),
    )


def versions() -> dict[str, str]:
    """Returns the versions of everything that can change a number, and the machine's kind."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that this run did without
    found["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    return found
