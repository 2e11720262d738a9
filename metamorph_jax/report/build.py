"""Puts the report of one run together: summary.json and report.html in the run's folder.

The digits demo's own part is in `digits.py`, that of runs on shapes in `shapes.py`; every other run
gets the sections of `run_sections.py` and, if it has held-out questions, those of
`question_sections.py`.
"""

import datetime
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metamorph_jax.decoding.generator import Generator, Sampling
from metamorph_jax.errors import UserError
from metamorph_jax.metrics.phases import read_phases
from metamorph_jax.metrics.progress import format_secs
from metamorph_jax.metrics.writers import read_metrics
from metamorph_jax.report import page, run_sections
from metamorph_jax.report.asking import (
    ANSWERS_FILE,
    QUESTIONS_FILE,
    accuracy_by_kind,
    ask,
    load_questions,
    write_answers,
)
from metamorph_jax.report.digits import report_digits
from metamorph_jax.report.digits_data import is_digits_folder
from metamorph_jax.report.findings import Findings
from metamorph_jax.report.question_sections import questions_section
from metamorph_jax.report.reconstruction import sheets_sections
from metamorph_jax.report.shapes import DATA_NAMES, report_shapes

REPORT_FILE, SUMMARY_FILE = "report.html", "summary.json"
PHASE = "report"


def build_report(
    run: Path,
    data: Path | None = None,
    visualizer: Path | None = None,
    *,
    image_root: Path | None = None,
    max_questions: int | None = None,
    step: int | None = None,
) -> dict[str, Any]:
    """Writes report.html and summary.json, and returns the summary.

    Args:
        run: folder of the run.
        data: the demo's data folder; or "shapes" or "shapes:validation"; or a folder with
            heldout_questions.jsonl, or such a file; None: no questions are asked.
        visualizer: folder of a trained visualizer; the demo paints with it.
        image_root: of the questions' images; None: the folder that the file is in.
        max_questions: ask at most so many, evenly spread; None: all. Of shapes: so many of each
            kind.
        step: of the checkpoint; None: the newest.

    Raises:
        UserError: the run, its checkpoint, data or visualizer is missing or does not fit.
    """
    start = time.monotonic()
    _check_folders(run, visualizer)
    history = read_metrics(run)
    found = _examine(run, data, visualizer, image_root, max_questions, step)
    curves = run_sections.curves_section(history, read_metrics(visualizer) if visualizer else [])
    # An earlier report of the same run is replaced, and so is its time.
    phases = read_phases(run) | read_phases(run / "visualizer")
    seconds = {name: s for name, s in phases.items() if name != PHASE}
    seconds[PHASE] = time.monotonic() - start
    painted = sheets_sections(run)
    closing = [run_sections.seconds_section(seconds), run_sections.recipe_section(run)]
    sections = [*found.sections, *painted, curves, *closing]
    _replace(run / REPORT_FILE, page.render(f"Run {run.name}", _lead(history, seconds), sections))
    stages = run_sections.by_stage(history)
    summary = {"run": run.name} | found.summary
    summary["last_steps"] = {name: run_sections.last_values(x) for name, x in stages.items()}
    summary |= {"seconds": seconds, "versions": run_sections.versions()}
    _replace(run / SUMMARY_FILE, json.dumps(_finite(summary), indent=1) + "\n")
    return summary


def _check_folders(run: Path, visualizer: Path | None) -> None:
    """Raises a UserError at once for what would otherwise be found out after minutes."""
    if not run.is_dir():
        raise UserError(f"--run={run} is no folder; expected the folder of a run, as in runs/NAME")
    if visualizer is not None and not visualizer.is_dir():
        raise UserError(
            f"--visualizer={visualizer} is no folder; python -m metamorph_jax.visualizer.train "
            "writes one"
        )


def _lead(history: Sequence[Mapping[str, Any]], seconds: Mapping[str, float]) -> str:
    """Returns the line below the title: how much work it was, and when it was reported."""
    now = datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M")
    num_stages = len(run_sections.by_stage(history))
    total = format_secs(sum(seconds.values()))
    return f"{len(history)} steps in {num_stages} stages, {total} in all; reported {now}"


def _examine(
    run: Path,
    data: Path | None,
    visualizer: Path | None,
    image_root: Path | None,
    max_questions: int | None,
    step: int | None,
) -> Findings:
    """Returns what the model itself has to say, if there is data to ask it about."""
    if data is None:
        return Findings({}, [])
    if str(data) in DATA_NAMES:
        tell("loading the checkpoint")
        generator = Generator.load(run, step)
        return report_shapes(run, generator, tell, DATA_NAMES[str(data)], max_questions)
    if data.is_dir() and is_digits_folder(data):
        tell("loading the checkpoint")
        generator = Generator.load(run, step)
        return report_digits(run, data, generator, visualizer, tell)
    file = data / QUESTIONS_FILE if data.is_dir() else data
    if not file.is_file():
        raise UserError(
            f"--data={data}: {file} is no file; expected a LLaVA-format .jsonl of held-out "
            f"questions, or a folder with {QUESTIONS_FILE}"
        )
    questions = load_questions(file, image_root or file.parent, max_questions)
    tell(f"asking {len(questions)} held-out questions")
    answered = ask(Generator.load(run, step), questions, Sampling())
    write_answers(run / ANSWERS_FILE, answered)
    counts = accuracy_by_kind(answered)
    by_kind = {kind or "all": right / asked for kind, (right, asked) in counts.items()}
    summary = {
        "understanding_accuracy": sum(item.is_right for item in answered) / len(answered),
        "understanding_accuracy_by_kind": by_kind,
        "num_questions": len(answered),
    }
    return Findings(summary, [questions_section(answered)])


def tell(what: str) -> None:
    """Says on standard error what the report is waiting for."""
    print(f"report: {what} ...", file=sys.stderr, flush=True)


def _replace(path: Path, text: str) -> None:
    """Writes a file as a whole: a kill in between leaves the old one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _finite(value: Any) -> Any:
    """Returns nested values with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
