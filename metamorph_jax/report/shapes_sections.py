"""The page's sections on shapes: one per kind, with its figures, controls and pictures.

Numbers come from `shapes_scoring.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metamorph_jax.data.conversation import IMAGE_TAG
from metamorph_jax.data.shapes.scene import Split
from metamorph_jax.report import page, pictures
from metamorph_jax.report.numbers import interval, percent
from metamorph_jax.report.page import Html
from metamorph_jax.report.shapes_cases import Picture
from metamorph_jax.report.shapes_scoring import Outcome
from metamorph_jax.report.shapes_sheets import evenly_spread

TITLES = {
    "image_qa": "Questions about pictures",
    "video_qa": "Questions about videos",
    "text_to_image": "Pictures by request",
    "pure_video": "Videos continued",
    "visual_thinking": "Visual thinking",
    "image_to_image": "Edits",
}
_ABOUT = {
    "image_qa": "A question about a picture that no stage was trained on, answered greedily.",
    "video_qa": "One frame a second of a movement that no stage was trained on, then a question.",
    "text_to_image": "A scene that no stage was trained on is described, and drawn. Only what the "
    "words say is judged.",
    "pure_video": "Frames of a movement that no stage was trained on are shown; the others are to "
    "be predicted, put in order, or the time between them is to be told.",
    "visual_thinking": "The answer first shows the region that the question is about, enlarged, "
    "then says what is asked. “Right” pictures show the right shape in the right colour.",
    "image_to_image": "A picture and a change to it; the result is a scene that no stage was "
    "trained on.",
}
_CONTROLS = {
    "ceiling": "the real picture, through the encoder and painted back",
    "shuffled": "pictures judged by the next request",
    "copied": "the last shown picture taken for the answer",
}
_PAINTED = (
    "Pictures are painted from the predicted visual tokens by the linear head that the run's own "
    "encoder was trained with: no diffusion model, no noise. They are read by the world's oracle "
    "(colours and connected pixels), not by a person."
)
_NUM_SHOWN = 10
_ENLARGED = 2
# Pictures beside each other, in one column and in three: more would not fit the page.
_NUM_ABREAST, _NUM_ABREAST_OF_THREE = 4, 2


def overview_section(summary: Mapping[str, Any], split: Split) -> tuple[str, Html]:
    """Returns one line per kind, the section to read first.

    Args:
        summary: by kind, as in summary.json.
        split: that was measured on.
    """
    rows = []
    for kind, found in summary.items():
        if "accuracy" in found:
            guess = percent(found["commonest_answer"]) if "commonest_answer" in found else ""
            count = found["num_answers"]
            measured = percent(found["accuracy"])
            rows.append((TITLES[kind], "answers", measured, interval(found["accuracy"], count)))
            rows[-1] += (f"{guess} by the commonest answer" if guess else "",)
        if "pictures" in found:
            right, controls = found["pictures"]["all"], ("copied", "shuffled")
            weakest = next(name for name in controls if name in found)
            control = f"{percent(found[weakest]['all'])} {weakest}"
            measured = interval(right, found["num_pictures"])
            rows.append((TITLES[kind], "pictures", percent(right), measured, control))
    return page.section(
        "Results",
        page.table(("kind", "of its", "right", "95\u00a0%\u00a0interval", "control"), rows),
        page.paragraph(
            f"Everything is measured on {split} samples: their scenes (shapes, colours and places) "
            "or movements occur in no training sample. A picture is right if the number of shapes "
            "and all that was asked of each is right. " + _PAINTED
        ),
    )


def kind_section(outcomes: Sequence[Outcome], found: Mapping[str, Any]) -> tuple[str, Html]:
    """Returns the section of one kind.

    Args:
        outcomes: all of the kind.
        found: its part of the summary.
    """
    kind = outcomes[0].case.kind
    blocks = [page.paragraph(_ABOUT[kind])]
    if "accuracy" in found:
        blocks.append(_answers_table(found))
    if "pictures" in found:
        blocks.append(_pictures_table(found))
    return page.section(TITLES[kind], *blocks, _sheet(outcomes))


def _answers_table(found: Mapping[str, Any]) -> Html:
    rows = [("all answers", percent(found["accuracy"]))]
    rows += [(task, percent(value)) for task, value in found["accuracy_by_task"].items()]
    if "commonest_answer" in found:
        rows.append(("control: always the commonest answer", percent(found["commonest_answer"])))
    return page.table(("", "right"), rows)


def _pictures_table(found: Mapping[str, Any]) -> Html:
    names = list(found["pictures"])
    rows = [("predicted", *map(percent, found["pictures"].values()))]
    rows += [
        (f"control: {text}", *map(percent, found[control].values()))
        for control, text in _CONTROLS.items()
        if control in found
    ]
    tasks = [(task, percent(value)) for task, value in found["pictures_by_task"].items()]
    number = percent(found["right_number_of_pictures"])
    return page.join(
        [
            page.table((f"{found['num_pictures']} pictures", *names), rows),
            page.table(("everything right, by task", ""), tasks),
            page.paragraph(f"Answers with as many pictures as were wanted: {number}."),
        ]
    )


def _sheet(outcomes: Sequence[Outcome]) -> Html:
    """Returns some cases: what was shown, asked, expected and answered."""
    answers_with_pictures = any(outcome.case.pictures for outcome in outcomes)
    abreast = _NUM_ABREAST_OF_THREE if answers_with_pictures else _NUM_ABREAST
    rows = [_sheet_row(outcome, abreast) for outcome in evenly_spread(outcomes, _NUM_SHOWN)]
    heads = ("shown", "asked", "expected", "answered")
    if not any(len(outcome.case.prompt.images) for outcome in outcomes):
        heads, rows = heads[1:], [row[1:] for row in rows]
    return page.figure(
        page.table(heads, rows, class_="sheet"),
        "Evenly spread over all cases, good or bad. A red frame: not everything that was asked for "
        "is right, or there is no picture.",
    )


def _sheet_row(outcome: Outcome, abreast: int) -> tuple[Html | str, ...]:
    case = outcome.case
    painted: list[Picture | None] = [*outcome.pictures[: len(case.pictures)]]
    painted += [None] * (len(case.pictures) - len(painted))
    said = "" if not case.answer else outcome.said or "(nothing)"
    wrong = [not score.all for score in outcome.scores]
    verdict = "" if outcome.is_said_right else "no"
    return (
        _strip(case.prompt.images, "shown pictures", abreast),
        case.prompt.text.replace(IMAGE_TAG, "").strip(),
        page.join([_strip(case.pictures, "the real answer", abreast), case.answer]),
        page.join(
            [
                _strip(painted, "pictures by the model", abreast, wrong),
                page.element("span", said, class_=verdict),
            ]
        ),
    )


def _strip(
    shown: Sequence[Picture | None],
    description: str,
    abreast: int,
    wrong: Sequence[bool] | None = None,
) -> Html:
    """Returns pictures in lines of `abreast`."""
    if not len(shown):
        return Html()
    wrong = [False] * len(shown) if wrong is None else wrong
    starts = range(0, len(shown), abreast)
    parts = [slice(start, start + abreast) for start in starts]
    lines = pictures.stack([pictures.row(shown[part], wrong[part]) for part in parts])
    large = np.repeat(np.repeat(lines, _ENLARGED, axis=0), _ENLARGED, axis=1)
    return page.image(pictures.data_uri(large), description)
