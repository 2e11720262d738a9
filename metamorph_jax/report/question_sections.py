"""The page's section on held-out questions: accuracy by kind, and answers to look at.

Questions are put and judged in `asking.py`.
"""

from collections.abc import Sequence

from metamorph_jax.report import page
from metamorph_jax.report.asking import AnsweredQuestion, accuracy_by_kind
from metamorph_jax.report.numbers import counted, interval
from metamorph_jax.report.page import Html
from metamorph_jax.report.pictures import thumbnail

_NUM_SHOWN = 12


def questions_section(
    answered: Sequence[AnsweredQuestion], between: Sequence[Html] = ()
) -> tuple[str, Html]:
    """Returns the section: a table by kind, `between`, and a choice of answers."""
    wrong = [item for item in answered if not item.is_right]
    right = [item for item in answered if item.is_right]
    shown = f"{min(len(wrong), _NUM_SHOWN)} of {len(wrong)}"
    return page.section(
        "Held-out questions",
        page.paragraph(
            f"{len(answered)} questions about images that no stage was trained on, answered "
            "greedily. All answers are in answers.jsonl beside this page."
        ),
        kinds_table(answered),
        *between,
        page.element("h3", f"Wrong answers ({shown})"),
        cards(spread(wrong, _NUM_SHOWN)) if wrong else page.paragraph("There are none."),
        page.element("h3", f"Right answers ({min(len(right), _NUM_SHOWN)} of {len(right)})"),
        cards(spread(right, _NUM_SHOWN)) if right else page.paragraph("There are none."),
    )


def kinds_table(answered: Sequence[AnsweredQuestion]) -> Html:
    """Returns accuracy by kind of question, with confidence intervals."""
    examples: dict[str, str] = {}
    for item in answered:
        text = item.question.text.replace("<image>", "").strip()
        examples.setdefault(item.question.kind, text)
    rows = [
        (kind or "all", examples[kind], counted(right, asked), interval(right / asked, asked))
        for kind, (right, asked) in accuracy_by_kind(answered).items()
    ]
    return page.table(("kind", "for example", "right", "95 % interval"), rows)


def spread(items: Sequence[AnsweredQuestion], count: int) -> list[AnsweredQuestion]:
    """Returns at most `count` items, evenly spread and therefore of all kinds."""
    return (
        [items[i * len(items) // count] for i in range(count)] if len(items) > count else [*items]
    )


def cards(answered: Sequence[AnsweredQuestion]) -> Html:
    """Returns one card per answer: image, question, what was said, what was expected."""
    return page.element("div", page.join(_card(item) for item in answered), class_="cards")


def _card(item: AnsweredQuestion) -> Html:
    question = item.question
    images = page.join(
        page.image(thumbnail(path), "the image the question is about") for path in question.images
    )
    lines = [page.element("div", question.text.replace("<image>", "").strip())]
    lines.append(page.element("div", item.said or "(nothing)", class_="said"))
    if not item.is_right:
        lines.append(page.element("div", f"expected: {question.expected}", class_="expected"))
    parts = [page.element("div", images, class_="images")] if question.images else []
    parts.append(page.element("div", page.join(lines)))
    classes = ["card", "" if item.is_right else "wrong", "" if question.images else "plain"]
    return page.element("div", page.join(parts), class_=" ".join(filter(None, classes)))
