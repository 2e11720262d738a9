"""How right the answers about shapes are, and the controls that say what that is worth.

Words are right if they equal the expected ones; pictures are read by the world's oracle.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from metamorph_jax.data.shapes.oracle import Score, Wanted, read_picture, score_picture
from metamorph_jax.report.asking import normalize
from metamorph_jax.report.shapes_cases import Case, Picture

# What is counted of a picture, by kind; a crop shows one shape and no more.
ATTRIBUTES = {
    "text_to_image": ("all", "count", "color", "shape", "size", "place", "relation"),
    "pure_video": ("all", "count", "color", "shape", "size", "place"),
    "visual_thinking": ("all", "color", "shape"),
    "image_to_image": ("all", "count", "color", "shape", "size", "place"),
}
_NOTHING = Score(False, 0.0, 0.0, 0.0, 0.0, False)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the model answered to a case.

    Attributes:
        said: its words behind the last picture.
        pictures: painted from its visual tokens.
        scores: of each picture that was expected; a missing one has nothing right.
    """

    case: Case
    said: str
    pictures: Sequence[Picture]
    scores: Sequence[Score]

    @property
    def is_said_right(self) -> bool:
        """Whether the words are the expected ones."""
        return normalize(self.said) == normalize(self.case.answer)


def judge(case: Case, said: str, pictures: Sequence[Picture]) -> Outcome:
    """Returns an answer with its scores."""
    return Outcome(case, said, pictures, score_pictures(case, pictures))


def score_pictures(case: Case, pictures: Sequence[Picture]) -> list[Score]:
    """Returns a score for each picture that the case wants."""
    scores = []
    for number, wanted in enumerate(case.wanted):
        if number >= len(pictures):
            scores.append(_NOTHING)
        elif case.kind == "visual_thinking":
            scores.append(score_crop(pictures[number], wanted[0]))
        else:
            scores.append(score_picture(pictures[number], wanted, case.relations))
    return scores


def score_crop(picture: Picture, wanted: Wanted) -> Score:
    """Returns whether the largest thing in a picture has the wanted shape and colour."""
    seen = max(read_picture(picture), key=lambda thing: thing.side, default=None)
    if seen is None:
        return _NOTHING
    shape, color = seen.item.shape == wanted.shape, seen.item.color == wanted.color
    return Score(True, float(shape), float(color), 1.0, 1.0, True)


def words_scores(outcomes: Sequence[Outcome], commonest: Mapping[str, str]) -> dict[str, Any]:
    """Returns accuracy, by task too, and that of always giving the task's commonest answer.

    Args:
        outcomes: those whose answer has words.
        commonest: by task; none: the control is left out.
    """
    right: dict[str, list[bool]] = collections.defaultdict(list)
    for outcome in outcomes:
        right[outcome.case.task].append(outcome.is_said_right)
    guesses = [commonest.get(o.case.task) == o.case.answer for o in outcomes]
    scores = {
        "accuracy": float(np.mean([o.is_said_right for o in outcomes])),
        "num_answers": len(outcomes),
        "accuracy_by_task": {task: float(np.mean(values)) for task, values in right.items()},
    }
    return scores | ({"commonest_answer": float(np.mean(guesses))} if commonest else {})


def picture_scores(
    outcomes: Sequence[Outcome], repaint: Callable[[np.ndarray], np.ndarray]
) -> dict[str, Any]:
    """Returns how many pictures are as wanted, by attribute and by task, and the controls.

    `ceiling` scores the real pictures after the way through the encoder and back, `shuffled` each
    answer against the next case, and `copied` the last picture that was shown, where one was.

    Args:
        outcomes: of one kind, whose answers have pictures.
        repaint: real pictures -> the same, painted from their own visual tokens.
    """
    attributes = ATTRIBUTES[outcomes[0].case.kind]
    cases = [outcome.case for outcome in outcomes]
    by_task: dict[str, list[bool]] = collections.defaultdict(list)
    for outcome in outcomes:
        by_task[outcome.case.task] += [score.all for score in outcome.scores]
    real = iter(repaint(np.stack([picture for case in cases for picture in case.pictures])))
    repainted = [[next(real) for _ in case.pictures] for case in cases]
    following = [*cases[1:], cases[0]]
    shuffled = [
        score_pictures(case, outcome.pictures)
        for case, outcome in zip(following, outcomes, strict=True)
    ]
    result = {
        "num_pictures": sum(len(case.wanted) for case in cases),
        "right_number_of_pictures": float(
            np.mean([len(o.pictures) == len(o.case.pictures) for o in outcomes])
        ),
        "pictures": rates([outcome.scores for outcome in outcomes], attributes),
        "pictures_by_task": {task: float(np.mean(values)) for task, values in by_task.items()},
        "ceiling": rates(list(map(score_pictures, cases, repainted)), attributes),
        "shuffled": rates(shuffled, attributes),
    }
    if all(case.prompt.images for case in cases):
        copies = [[case.prompt.images[-1]] * len(case.wanted) for case in cases]
        result["copied"] = rates(list(map(score_pictures, cases, copies)), attributes)
    return result


def rates(scores: Sequence[Sequence[Score]], attributes: Sequence[str]) -> dict[str, float]:
    """Returns the mean of each attribute over all pictures."""
    every = [score for group in scores for score in group]
    return {name: float(np.mean([getattr(score, name) for score in every])) for name in attributes}
