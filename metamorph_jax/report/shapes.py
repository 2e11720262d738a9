"""The report's part on shapes: unseen samples of all six kinds, asked, painted and judged."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from metamorph_jax.data.shapes.scene import Split
from metamorph_jax.decoding.features import Encoder
from metamorph_jax.decoding.generator import Generator, Sampling
from metamorph_jax.report.asking import ANSWERS_FILE
from metamorph_jax.report.findings import Findings
from metamorph_jax.report.pixel_painter import PixelPainter
from metamorph_jax.report.shapes_cases import (
    KINDS,
    MAX_IMAGES,
    Case,
    commonest_answers,
    last_words,
    load_cases,
)
from metamorph_jax.report.shapes_scoring import Outcome, judge, picture_scores, words_scores
from metamorph_jax.report.shapes_sections import kind_section, overview_section
from metamorph_jax.report.shapes_sheets import write_sheets

# As --data says it: what is measured on. Settings are chosen on the validation split.
DATA_NAMES: dict[str, Split] = {
    "shapes": "heldout",
    "shapes:heldout": "heldout",
    "shapes:validation": "validation",
}
NUM_CASES = 200  # of each kind
_MAX_TEXT_TOKENS = 64  # beside pictures; the longest answers have about 30


def report_shapes(
    run: Path,
    generator: Generator,
    tell: Callable[[str], None],
    split: Split = "heldout",
    num_cases: int | None = None,
) -> Findings:
    """Returns what the model makes of unseen shapes; writes answers and sheets into the run.

    Args:
        run: folder of the run.
        generator: of the checkpoint; its encoder must be the run's own, with a head that paints.
        tell: is called with what happens next.
        split: that the samples are of.
        num_cases: of each kind; None: `NUM_CASES`.

    Raises:
        UserError: the model has no head that paints pixels.
    """
    painter = PixelPainter(generator.params)
    encoder = Encoder(generator.config, generator.params["vision_tower"])

    def repaint(pictures: np.ndarray) -> np.ndarray:
        return painter.paint(encoder.encode(pictures, len(pictures)))

    count = num_cases or NUM_CASES
    tell(f"asking {count} {split} samples of each of {len(KINDS)} kinds")
    # All at once: samples of different kinds share batches, and so compiled programs.
    cases = [case for kind in KINDS for case in load_cases(kind, split, count)]
    outcomes = answer(generator, painter, cases)
    summary, sections = {}, []
    for kind in KINDS:
        of_kind = [outcome for outcome in outcomes if outcome.case.kind == kind]
        summary[kind] = _scores(kind, of_kind, repaint)
        sections.append(kind_section(of_kind, summary[kind]))
    _write_answers(run / ANSWERS_FILE, outcomes)
    write_sheets(run, outcomes, repaint)
    rates = {
        f"{kind}_{what}": value
        for kind, found in summary.items()
        for what, value in (
            ("accuracy", found.get("accuracy")),
            ("pictures", found.get("pictures", {}).get("all")),
        )
        if value is not None
    }
    found = rates | {"split": split, "shapes": summary}
    return Findings(found, [overview_section(summary, split), *sections])


def answer(generator: Generator, painter: PixelPainter, cases: list[Case]) -> list[Outcome]:
    """Returns the judged answers to all cases."""
    num_tokens = generator.config.visual_tokens.num_tokens
    most = max(len(case.pictures) for case in cases)
    sampling = Sampling(
        max_new_tokens=_MAX_TEXT_TOKENS + most * (num_tokens + 2), max_images=MAX_IMAGES
    )
    answers = generator.generate([case.prompt for case in cases], sampling)
    return [
        judge(
            case,
            last_words(said.text),
            list(painter.paint(said.visual_tokens)) if len(said.visual_tokens) else [],
        )
        for case, said in zip(cases, answers, strict=True)
    ]


def _scores(
    kind: str, outcomes: list[Outcome], repaint: Callable[[np.ndarray], np.ndarray]
) -> dict:
    with_words = [outcome for outcome in outcomes if outcome.case.answer]
    with_pictures = [outcome for outcome in outcomes if outcome.case.pictures]
    found = words_scores(with_words, commonest_answers(kind)) if with_words else {}
    return found | (picture_scores(with_pictures, repaint) if with_pictures else {})


def _write_answers(path: Path, outcomes: list[Outcome]) -> None:
    """Writes one JSON object a line: kind, task, question, expected words, words, judgement."""
    with open(path, "w", encoding="utf-8") as file:
        for outcome in outcomes:
            fields = {
                "kind": outcome.case.kind,
                "task": outcome.case.task,
                "question": outcome.case.prompt.text,
                "expected": outcome.case.answer,
                "answer": outcome.said,
                "right": outcome.is_said_right,
                "pictures_right": [score.all for score in outcome.scores],
            }
            file.write(json.dumps(fields) + "\n")
