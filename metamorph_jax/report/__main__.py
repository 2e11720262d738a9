"""Front door: `python -m metamorph_jax.report --run=runs/digits --data=data/digits`.

Writes report.html (one file, nothing loaded from elsewhere), summary.json, answers.jsonl and
pictures/ into the run's folder. Read `build.py` next.
"""

import argparse
from pathlib import Path
from typing import Any

from metamorph_jax.errors import run_main


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m metamorph_jax.report",
        description="Shows what a run learned: curves, held-out questions, pictures, controls.",
        allow_abbrev=False,
    )
    parser.add_argument("--run", required=True, type=Path, help="folder of the run")
    parser.add_argument(
        "--data",
        type=Path,
        help="held-out questions: a LLaVA-format .jsonl, a folder with heldout_questions.jsonl, "
        "the demo's data folder, or shapes (shapes:validation to choose settings); default: none",
    )
    parser.add_argument("--image_root", type=Path, help="of the questions (default: their folder)")
    parser.add_argument(
        "--visualizer", type=Path, help="folder of a visualizer (default: RUN/visualizer, if any)"
    )
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the newest intact)")
    parser.add_argument(
        "--max_questions", type=int, help="ask at most so many (of shapes: of each kind)"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks of user errors")
    flags = parser.parse_args(argv)
    from metamorph_jax.metrics.phases import record_phase
    from metamorph_jax.report.build import PHASE, REPORT_FILE, build_report

    visualizer = flags.visualizer
    if visualizer is None and (flags.run / "visualizer").is_dir():
        visualizer = flags.run / "visualizer"
    summary = build_report(
        flags.run,
        flags.data,
        visualizer,
        image_root=flags.image_root,
        max_questions=flags.max_questions,
        step=flags.step,
    )
    record_phase(flags.run, PHASE, summary["seconds"][PHASE])
    print_summary(summary)
    print(f"{flags.run / REPORT_FILE}")
    return 0


def print_summary(summary: dict[str, Any]) -> None:
    """Prints the numbers of a summary, one a line."""
    for name, value in summary.items():
        if isinstance(value, float):
            print(f"{name.replace('_', ' '):32} {value:.4f}")
    style = summary.get("style_order", {})
    for name in ("ink_ordered", "slant_ordered"):
        if name in style:
            print(f"{'style: ' + name.replace('_', ' '):32} {'yes' if style[name] else 'no'}")


if __name__ == "__main__":
    run_main(main)
