"""The demo's part of the report, from the first request to finished sections.

The visualizer paints in its own process while this one asks the held-out questions.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from metamorph_jax.decoding.features import Encoder
from metamorph_jax.decoding.generator import Generator, Sampling
from metamorph_jax.report import digits_scoring as scoring
from metamorph_jax.report import digits_sections, digits_sheets, page
from metamorph_jax.report.asking import (
    ANSWERS_FILE,
    QUESTIONS_FILE,
    AnsweredQuestion,
    ask,
    load_questions,
    write_answers,
)
from metamorph_jax.report.digits_data import Scans, load_requests, load_scans
from metamorph_jax.report.digits_results import (
    Drawn,
    Painted,
    Picture,
    draw,
    picture_scores,
    read_pictures,
    token_scores,
    understanding_scores,
)
from metamorph_jax.report.findings import Findings
from metamorph_jax.report.page import Html
from metamorph_jax.report.painting import Painting
from metamorph_jax.report.question_sections import questions_section

PICTURES_FOLDER = "pictures"
_MAX_TEXT_TOKENS = 32  # the demo's answers have about ten, beside a picture's


def report_digits(
    run: Path,
    data: Path,
    generator: Generator,
    visualizer: Path | None,
    tell: Callable[[str], None],
) -> Findings:
    """Returns the demo's results and sections; writes answers and pictures into the run's folder.

    Args:
        run: folder of the run.
        data: folder that `data.digits` wrote.
        generator: of the checkpoint.
        visualizer: folder of a trained visualizer; None: no pictures.
        tell: is called with what happens next.

    Raises:
        UserError: data is missing, or the visualizer does not fit.
    """
    heldout, train = load_scans(data, "heldout"), load_scans(data, "train")
    requests = load_requests(data, heldout)
    tell(f"asking for {len(requests)} pictures")
    encoder = Encoder(generator.config, generator.params["vision_tower"])
    features = encoder.encode(heldout.pictures, len(heldout.digits))
    train_features = encoder.encode(train.pictures, len(train.digits))
    # The same for everything that is asked: another limit would be another compiled program.
    sampling = Sampling(max_new_tokens=features.shape[1] + _MAX_TEXT_TOKENS)
    drawn = draw(generator, requests, sampling)
    painting = None
    if visualizer is not None:
        tokens = np.concatenate([drawn.tokens, features])
        painting = Painting(visualizer, tokens, run / PICTURES_FOLDER, encoder.fingerprint)
    answered, pictures = _ask_meanwhile(run, data, generator, sampling, painting, tell)
    summary = understanding_scores(answered)
    summary |= token_scores(drawn, heldout, features, train, train_features)
    painted = _score_pictures(summary, pictures, drawn, heldout, train)
    return Findings(summary, _sections(summary, answered, drawn, heldout, painted))


def _ask_meanwhile(
    run: Path,
    data: Path,
    generator: Generator,
    sampling: Sampling,
    painting: Painting | None,
    tell: Callable[[str], None],
) -> tuple[list[AnsweredQuestion], list[Picture] | None]:
    """Returns the answers to the held-out questions, and the pictures that were being painted."""
    try:
        questions = load_questions(data / QUESTIONS_FILE, data)
        tell(f"asking {len(questions)} held-out questions")
        answered = ask(generator, questions, sampling)
        write_answers(run / ANSWERS_FILE, answered)
        if painting is None:
            return answered, None
        tell("waiting for the pictures")
        return answered, painting.finish()
    except BaseException:
        if painting:
            painting.cancel()
        raise


def _score_pictures(
    summary: dict[str, Any],
    pictures: list[Picture] | None,
    drawn: Drawn,
    heldout: Scans,
    train: Scans,
) -> tuple[Painted, Painted] | None:
    """Adds what the pictures are worth to `summary`; returns those drawn and those repainted."""
    reader = scoring.DigitReader(train.small, train.digits)
    summary["classifier_accuracy"] = scoring.accuracy(reader.read(heldout.small), heldout.digits)
    if pictures is None:
        return None
    count = len(drawn.requests)
    painted, again = (read_pictures(reader, part) for part in (pictures[:count], pictures[count:]))
    summary |= picture_scores(drawn, painted, again, heldout)
    summary["num_class_prompts"] = len(drawn.of_kind("class"))
    return painted, again


def _sections(
    summary: dict[str, Any],
    answered: list[AnsweredQuestion],
    drawn: Drawn,
    heldout: Scans,
    painted: tuple[Painted, Painted] | None,
) -> list[tuple[str, Html]]:
    """Returns the demo's sections in reading order."""
    sections = [digits_sections.summary_section(summary, len(heldout.digits))]
    if painted is None:
        sections.append(
            page.section("Pictures", page.paragraph("There is no visualizer, so none was painted."))
        )
    else:
        mine, again = painted
        sections.append(
            page.section(
                "Pictures",
                page.element("h3", "By digit"),
                digits_sheets.class_prompts_figure(drawn, mine, heldout),
                page.element("h3", "By style"),
                digits_sheets.styled_figure(drawn, mine),
                page.element("h3", "From another picture"),
                digits_sheets.edits_figure(drawn, mine),
                page.element("h3", "From real visual tokens"),
                digits_sheets.reconstruction_figure(again, heldout, summary),
            )
        )
    sections.append(digits_sections.controls_section(summary))
    sections.append(questions_section(answered, [digits_sections.confusion_figure(answered)]))
    return sections
