"""The page's sections on the demo: results against targets, confusion matrix, controls.

Numbers come from `digits_results.py`; sheets of pictures are in `digits_sheets.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from metamorph_jax.report import page, plots
from metamorph_jax.report.asking import AnsweredQuestion
from metamorph_jax.report.digits_data import EDIT_QUESTION
from metamorph_jax.report.digits_results import said_digits
from metamorph_jax.report.digits_scoring import confusion
from metamorph_jax.report.numbers import interval, percent
from metamorph_jax.report.page import Html

Summary = Mapping[str, Any]

# What the project set out to reach, decided before the held-out scans were looked at.
TARGETS = {
    "understanding_accuracy": 0.95,
    "generation_accuracy": 0.95,
    "reconstruction_accuracy": 0.92,
    "well_formed_fraction": 1.0,
}
_SOURCES = {
    "real_heldout_scans": "real held-out scans",
    "painted_from_real_tokens": "painted from their tokens",
    "styled_prompts": "drawn by styled prompts",
    "class_prompts": "drawn by prompts that name the digit only",
}


def summary_section(summary: Summary, num_digit_questions: int) -> tuple[str, Html]:
    """Returns the table of results against targets, the section to read first.

    Args:
        summary: as in summary.json; pictures may be missing.
        num_digit_questions: how many held-out scans were asked about.
    """
    rows = [_target_row(summary, *row) for row in _target_rows(summary, num_digit_questions)]
    if "style_order" in summary:
        rows += _style_rows(summary["style_order"])
    return page.section(
        "Results",
        page.table(("", "measured", "95\u00a0%\u00a0interval", "target", "reached"), rows),
        page.paragraph(
            "Everything is measured on held-out scans, or on pictures that were drawn without any "
            "scan. Pictures are read by a support vector machine that was fitted to the real "
            "training scans only"
            + (
                f"; on real held-out scans it is right {percent(summary['classifier_accuracy'])} "
                "of the time, which bounds every figure about pictures. "
                if "classifier_accuracy" in summary
                else ". "
            )
            + "One template per digit would also be recognised: see the controls."
        ),
    )


def _target_rows(summary: Summary, num_digit_questions: int) -> Iterable[tuple[str, str, int]]:
    yield "“Which digit is this?”, held-out scans", "understanding_accuracy", num_digit_questions
    if "generation_accuracy" in summary:
        yield (
            "Pictures by prompt (“Draw a seven.”) recognised",
            "generation_accuracy",
            summary["num_class_prompts"],
        )
        yield (
            "Pictures painted from the real tokens of held-out scans recognised",
            "reconstruction_accuracy",
            num_digit_questions,
        )
    yield (
        "Answers with a picture: exactly one, of exactly P visual tokens",
        "well_formed_fraction",
        summary["num_requests"],
    )


def _target_row(summary: Summary, name: str, key: str, count: int) -> tuple:
    value, target = summary[key], TARGETS[key]
    measured = f"{percent(value)} ({round(value * count)} of {count})"
    wanted = ("≥\u00a0" if target < 1 else "") + f"{100 * target:.0f}\u00a0%"
    return name, measured, interval(value, count), wanted, page.verdict(value >= target)


def _style_rows(order: Summary) -> list[tuple]:
    """Returns the rows about style words: only their order is tested, not by how much."""
    ink = f"{order['ink_bold']:.3f} against {order['ink_thin']:.3f}"
    slant = f"{order['slant_right']:+.3f} against {order['slant_left']:+.3f}"
    return [
        (
            "“bold” has more ink than “thin” (mean intensity)",
            f"{ink}; in {order['ink_digits_ordered']} of 10 digits",
            "",
            "more",
            page.verdict(order["ink_ordered"]),
        ),
        (
            "“leaning right” leans further right than “leaning left” (slant)",
            f"{slant}; in {order['slant_digits_ordered']} of 10 digits",
            "",
            "more",
            page.verdict(order["slant_ordered"]),
        ),
    ]


def confusion_figure(answered: Sequence[AnsweredQuestion]) -> Html:
    """Returns the confusion matrix of the questions about the digit."""
    table = confusion(*said_digits(answered))
    names = [str(digit) for digit in range(10)]
    matrix = page.image(
        plots.confusion_matrix(table, names, [*names, "none"]), "confusion matrix of ten digits"
    )
    return page.figure(
        matrix,
        "Rows: what the scan shows. Columns: the digit that the answer names; “none” if it names "
        "no digit or several. Look for a single column that collects errors: the model's favourite "
        "guess.",
    )


def controls_section(summary: Summary) -> tuple[str, Html]:
    """Returns the figures that say what the others are worth."""
    header = ("", "measured", "how to read it")
    if "variety" not in summary:
        return page.section("Controls", page.table(header, _token_rows(summary)))
    rows = [*_picture_rows(summary), *_token_rows(summary)]
    variety = summary["variety"]
    real = variety["real_heldout_scans"]
    return page.section(
        "Controls",
        page.table(header, rows),
        page.element("h3", "Variety within a digit"),
        page.paragraph(
            "Mean squared pixel distance between two pictures of the same digit (8x8, intensities "
            "0 to 1). A model that answers every request with one template per digit has none, and "
            "is recognised all the same."
        ),
        page.table(
            ("source", "variety", "of the real one"),
            [
                (_SOURCES[name], f"{value:.4f}", f"{value / real:.0%}")
                for name, value in variety.items()
            ],
        ),
    )


def _picture_rows(summary: Summary) -> list[tuple[str, str, str]]:
    return [
        (
            "Pictures compared with the digit of another prompt",
            percent(summary["shuffled_prompt_accuracy"]),
            "about 10 % expected: recognition follows the prompt, not the reader's habits",
        ),
        (
            "The reader on real held-out scans",
            percent(summary["classifier_accuracy"]),
            "bounds every recognition rate",
        ),
        (
            "Pictures by styled prompt recognised",
            percent(summary["styled_accuracy"]),
            "style words must not cost the digit",
        ),
        (
            f"Answers to “{EDIT_QUESTION}” recognised as the next digit",
            percent(summary["edit_accuracy"]),
            "needs the scan to be read and another digit to be drawn",
        ),
    ]


def _token_rows(summary: Summary) -> list[tuple[str, str, str]]:
    return [
        (
            "Cosine of predicted tokens with those of the held-out scan that the words describe",
            f"{summary['cosine']:.3f}",
            "the figure itself",
        ),
        (
            "… of the class mean of the training scans with the same tokens",
            f"{summary['cosine_class_mean_baseline']:.3f}",
            "knows the digit and nothing else; what lies above it is style",
        ),
        (
            "… of the mean of all training scans with them",
            f"{summary['cosine_global_mean_baseline']:.3f}",
            "knows nothing: a high cosine alone means little",
        ),
        (
            "Cosine of class prompts with the nearest held-out scan",
            f"{summary['cosine_nearest_heldout']:.3f}",
            "close to 1: predictions lie where real tokens lie",
        ),
    ]
