"""Front door: `python -m metamorph_jax.lint` looks through data before a run is booked.

    python -m metamorph_jax.lint --config=configs/digits.py           # all stages of a recipe
    python -m metamorph_jax.lint data.jsonl --image_root=images       # files, without a recipe

prints counts and findings (each begins with FILE:LINE), writes `lint.html` to look at and
`findings.jsonl`, and ends with exit code 1 if too many records cannot be trained on. Neither jax
nor a model is started. Read `data/lint/survey.py` next.
"""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from metamorph_jax.errors import UserError, run_main, visible

if TYPE_CHECKING:
    from metamorph_jax.data.lint.survey import StageToSurvey, Survey
    from metamorph_jax.metrics.progress import Progress
    from metamorph_jax.report.lint_numbers import LintResult

PAGE_FILE, FINDINGS_FILE = "lint.html", "findings.jsonl"
_NUM_SHOWN = 5  # findings of a reason on the terminal
_SILENT_SECS = 3.0
_IMAGE_SIZE, _NUM_VISUAL_TOKENS = 384, 64  # without a recipe: SigLIP SO400M, as in MetaMorph


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    flags, overrides = _parse(argv)
    from metamorph_jax.data.lint.findings import FindingLog, unchecked
    from metamorph_jax.data.lint.survey import survey_stage
    from metamorph_jax.report.lint_numbers import LintResult
    from metamorph_jax.report.lint_page import lint_page

    name, stages = _from_recipe(flags, overrides) if flags.config else _from_files(flags)
    out = flags.out or Path("runs/lint") / name
    surveys = []
    with FindingLog(out / FINDINGS_FILE) as log:
        for stage in stages:
            progress = _Reading(stage.name)
            survey = survey_stage(
                stage,
                log,
                depth=flags.media,
                max_records=flags.max_records,
                num_workers=flags.workers,
                on_progress=progress,
            )
            progress.close()
            surveys.append(survey)
    result = LintResult(
        name=name,
        surveys=surveys,
        counts=log.counts,
        kept=log.kept,
        unchecked=unchecked(flags.media, all(stage.writing for stage in stages), flags.workers),
        max_problem_fraction=flags.max_problem_fraction,
    )
    # File names need not be Unicode; what `visible` has not seen is shown by number.
    (out / PAGE_FILE).write_text(lint_page(result), "utf-8", "backslashreplace")
    _print(result)
    print(visible(f"{out / PAGE_FILE}  {out / FINDINGS_FILE}"))
    return 0 if result.is_good else 1


class _Reading:
    """The progress line of a stage; silent if that takes no time."""

    def __init__(self, stage: str):
        self._label, self._begin = f"{stage}:", time.monotonic()
        self._progress: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        """Takes note of `done` records of `total`."""
        from metamorph_jax.metrics.progress import Progress

        if self._progress is None and time.monotonic() - self._begin > _SILENT_SECS:
            self._progress = Progress(total, "record", log_interval=2**15, label=self._label)
        if self._progress is not None:
            self._progress.update(done)

    def close(self) -> None:
        """Ends the line."""
        if self._progress is not None:
            self._progress.close()


def _parse(argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    from metamorph_jax.config.overrides import split_arguments

    parser = argparse.ArgumentParser(
        prog="python -m metamorph_jax.lint",
        description="Looks through data before training: counts, faults, lengths, samples.",
        epilog="Any key of the recipe: --config.path.to.key=value.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="data of any format, instead of a recipe")
    add("--config", help="recipe: configs/NAME.py or NAME.py:arg; the sources of all its stages")
    add("--image_root", default="", help="FILE: folder of the images (default: that of the file)")
    add("--kind", help="FILE: what is made of a record (default: conversation)")
    add("--tokenizer", help="FILE: folder of a tokenizer; without one no tokens are counted")
    add("--template", help="FILE: how conversations become tokens (default: metamorph_llama3)")
    add("--max_records", type=int, help="of each source, a random choice (default: all)")
    add(
        "--media",
        choices=("decode", "headers", "none"),
        default="decode",
        help="how closely images are looked at",
    )
    add("--out", type=Path, help="folder for the page and the findings (default: runs/lint/NAME)")
    add(
        "--max_problem_fraction",
        type=float,
        default=0.0,
        help="exit code 1 if more of a source's records cannot be trained on (default: 0)",
    )
    add("--workers", type=int, default=0, help="processes (default: 0, threads of this one)")
    add("--debug", action="store_true", help="show tracebacks of user errors")
    overrides, rest = split_arguments(argv)
    flags = parser.parse_args(rest)
    _check(flags, bool(overrides))
    return flags, overrides


def _check(flags: argparse.Namespace, has_overrides: bool) -> None:
    """Raises a UserError for flags that do not fit together."""
    if bool(flags.config) == bool(flags.files):
        raise UserError("name either a recipe, --config=configs/NAME.py, or data files")
    only_files = ("image_root", "kind", "tokenizer", "template")
    named = [f"--{name}" for name in only_files if flags.config and getattr(flags, name)]
    if named:
        raise UserError(f"{', '.join(named)}: the recipe says so already; use --config.KEY=value")
    if has_overrides and not flags.config:
        raise UserError("--config.KEY=value changes a recipe, but none is named with --config")
    if flags.max_records is not None and flags.max_records < 1:
        raise UserError(f"--max_records={flags.max_records}: at least 1")
    if not 0 <= flags.max_problem_fraction <= 1:
        raise UserError(f"--max_problem_fraction={flags.max_problem_fraction}: from 0 to 1")
    if flags.workers < 0:
        raise UserError(f"--workers={flags.workers}: 0 or more")


def _from_recipe(
    flags: argparse.Namespace, overrides: dict[str, str]
) -> tuple[str, list["StageToSurvey"]]:
    """Returns the name of a recipe, and its stages."""
    from metamorph_jax.config.loading import load_recipe
    from metamorph_jax.data.geometry import pad_color
    from metamorph_jax.data.lint.examine import Writing
    from metamorph_jax.data.lint.survey import StageToSurvey
    from metamorph_jax.data.templates import check_template, choose_template
    from metamorph_jax.data.tokenizer import load_tokenizer
    from metamorph_jax.data.views import view_layout
    from metamorph_jax.ops.normalize import PIXEL_STATISTICS

    config = load_recipe(flags.config, overrides)
    tokenizer = load_tokenizer(config.tokenizer.path)
    template = choose_template(config.tokenizer)
    check_template(template, tokenizer)
    num_visual_tokens = config.model.visual_tokens.num_tokens
    family, image_size = config.model.vision.family, config.model.vision.image_size
    mean, _ = PIXEL_STATISTICS[family]
    stages = [
        StageToSurvey(
            name=stage.name,
            objective=stage.objective,
            data=stage.data,
            writing=Writing(
                tokenizer,
                template,
                num_visual_tokens,
                view_layout(stage.data, image_size, num_visual_tokens),
            ),
            image_size=image_size,
            processor=family,
            pad_color=pad_color(mean),
            global_batch_size=stage.global_batch_size,
            total_steps=stage.total_steps,
            seed=config.seed,
        )
        for stage in config.stages
    ]
    return config.name, stages


def _from_files(flags: argparse.Namespace) -> tuple[str, list["StageToSurvey"]]:
    """Returns a name for the files, and one stage that reads them."""
    from typing import get_args

    from metamorph_jax.config.schema_run import DataConfig, Kind, SourceConfig, TokenizerConfig
    from metamorph_jax.data.lint.examine import Writing
    from metamorph_jax.data.lint.survey import StageToSurvey
    from metamorph_jax.data.templates import TEMPLATES, check_template, choose_template
    from metamorph_jax.data.tokenizer import load_tokenizer

    name = flags.template or "metamorph_llama3"
    kind = flags.kind or "conversation"
    for flag, value, known in (
        ("kind", kind, get_args(Kind)),
        ("template", name, tuple(TEMPLATES)),
    ):
        if value not in known:
            raise UserError(f"--{flag}={value}: unknown; expected one of {', '.join(known)}")
    writing = None
    if flags.tokenizer:
        tokenizer = load_tokenizer(flags.tokenizer)
        template = choose_template(TokenizerConfig(path=flags.tokenizer, template=name))
        check_template(template, tokenizer)
        writing = Writing(tokenizer, template, _NUM_VISUAL_TOKENS)
    sources = tuple(
        SourceConfig(path=file, kind=kind, image_root=flags.image_root) for file in flags.files
    )
    name = Path(flags.files[0].replace(":", "_").replace("*", "_")).stem
    data = DataConfig(sources=sources, image_geometry="pad")  # on the page, shapes stay as they are
    return name, [StageToSurvey(name=name, data=data, writing=writing, image_size=_IMAGE_SIZE)]


def _print(result: "LintResult") -> None:
    """Prints counts, the first findings of each reason, and what is fine."""
    from metamorph_jax.data.lint.findings import SEVERITIES

    for survey in result.surveys:
        _print_stage(survey)
    print()
    for reason in SEVERITIES:
        findings = result.kept.get(reason, ())[:_NUM_SHOWN]
        for finding in findings:
            print(visible(finding))
        if (more := result.counts.get(reason, 0) - len(findings)) > 0:
            print(f"... and {more:,} more [{reason}]")
    print()
    for reason, severity in SEVERITIES.items():
        if count := result.counts.get(reason, 0):
            print(f"{severity:8} {reason:26}{count:>10,}")
    print(f"fine     {', '.join(result.fine) or 'nothing'}")
    for reason, why in result.unchecked.items():
        print(f"unknown  {reason:26} ({why})")
    saying = "good" if result.is_good else "bad"
    print(
        f"verdict  {saying}: {result.worst_fraction:.2%} of a source's records are in error, "
        f"{result.max_problem_fraction:.2%} may be (--max_problem_fraction)"
    )


def _print_stage(survey: "Survey") -> None:
    """Prints what the sources of a stage hold, and what rows they fill."""
    import numpy as np

    from metamorph_jax.report.lint_numbers import (
        kind_of,
        lengths_of,
        plan_lines,
        spread,
        total,
    )

    print(visible(f"stage {survey.stage.name}"))
    for source in survey.sources:
        counted = [f"{len(source.rows):,} of {source.size:,} records"]
        counted.append(f"{np.count_nonzero(source.rows['is_readable']):,} usable")
        counted += [
            f"{total(source, column):,} {column.removeprefix('num_').replace('_', ' ')}"
            for column in ("num_answers", "num_images", "num_answer_images", "num_videos")
        ]
        path = visible(source.config.path)
        print(f"  {path} ({kind_of(survey.stage, source)}): {', '.join(counted)}")
        for other, lengths in lengths_of(survey):
            for name, values in lengths.items() if other is source else ():
                parts = zip(("min", "median", "95 %", "max", "sum"), spread(values), strict=True)
                said = "  ".join(f"{part} {number}" for part, number in parts)
                print(f"    {name:20} {said}")
    for what, number in plan_lines(survey.stage, survey.plan) if survey.plan else ():
        print(f"  {what:26} {number}")


if __name__ == "__main__":
    run_main(main)
