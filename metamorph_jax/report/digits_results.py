"""What the demo's model is asked for and how the outcome is measured, controls included.

The arithmetic of the scores is in `digits_scoring.py`; what the page shows of them is in
`digits_sections.py`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from metamorph_jax.data.digits import shrink
from metamorph_jax.data.digits_texts import WORDS
from metamorph_jax.decoding.generator import Generator, Prompt, Sampling
from metamorph_jax.report import digits_scoring as scoring
from metamorph_jax.report.asking import AnsweredQuestion, accuracy_by_kind, normalize
from metamorph_jax.report.digits_data import PictureRequest, Scans, matching_requests
from metamorph_jax.typing import Array, Bool, Float, Integer, Shaped

Picture = Shaped[np.ndarray, "height width 3"]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What the model answered to requests for pictures.

    Attributes:
        requests: what was asked.
        tokens: the predicted visual tokens; zeros where there is no picture.
        well_formed: exactly one picture of exactly P tokens, in an answer that ends by itself.
    """

    requests: Sequence[PictureRequest]
    tokens: Float[np.ndarray, "count P E"]
    well_formed: Bool[np.ndarray, "count"]

    def of_kind(self, kind: str) -> list[int]:
        """Returns the indices of the requests of one kind."""
        return [index for index, request in enumerate(self.requests) if request.kind == kind]

    @property
    def asked(self) -> Integer[np.ndarray, "count"]:
        """The digits that were asked for."""
        return np.array([request.digit for request in self.requests])


@dataclasses.dataclass(frozen=True)
class Painted:
    """Pictures, and what the reader that knows real scans only reads in them.

    Attributes:
        pictures: uint8.
        small: the same as 8x8 scans.
        read: the digits.
    """

    pictures: Sequence[Picture]
    small: Float[np.ndarray, "count 8 8"]
    read: Integer[np.ndarray, "count"]


def draw(generator: Generator, requests: Sequence[PictureRequest], sampling: Sampling) -> Drawn:
    """Returns the answers to all requests."""
    prompts = [
        Prompt(request.text, (request.image,) if request.image else ()) for request in requests
    ]
    answers = generator.generate(prompts, sampling)
    tokens = np.zeros((len(requests), *answers[0].visual_tokens.shape[1:]), np.float32)
    well_formed = np.zeros(len(requests), bool)
    for index, answer in enumerate(answers):
        pictures = answer.visual_tokens
        well_formed[index] = answer.well_formed and len(pictures) == 1
        if len(pictures):
            tokens[index] = pictures[0]
    return Drawn(requests, tokens, well_formed)


def read_pictures(reader: scoring.DigitReader, pictures: Sequence[Picture]) -> Painted:
    """Returns pictures with what they show."""
    small = np.stack([shrink(picture) for picture in pictures])
    return Painted(pictures, small, reader.read(small))


def understanding_scores(answered: Sequence[AnsweredQuestion]) -> dict[str, Any]:
    """Returns the part of the summary about questions."""
    counts = accuracy_by_kind(answered)
    by_kind = {kind: right / asked for kind, (right, asked) in counts.items()}
    return {
        "understanding_accuracy": by_kind["digit"],
        "understanding_accuracy_by_kind": by_kind,
        "num_questions": sum(asked for _, asked in counts.values()),
    }


def said_digits(answered: Sequence[AnsweredQuestion]) -> tuple[list[int | None], list[int]]:
    """Returns (what was said, what is right) for the questions about the digit.

    None where an answer names no digit, or several.
    """
    said, right = [], []
    for item in answered:
        if item.question.kind == "digit":
            words = [word for word in normalize(item.said).split() if word in WORDS]
            said.append(WORDS.index(words[0]) if len(set(words)) == 1 else None)
            right.append(WORDS.index(item.question.label))
    return said, right


def token_scores(
    drawn: Drawn, heldout: Scans, features: Array, train: Scans, train_features: Array
) -> dict[str, Any]:
    """Returns the part of the summary about predicted visual tokens.

    `cosine` compares each held-out scan's own tokens with those predicted from the words that
    describe it; the class mean of the training scans is the baseline that knows only the digit.

    Args:
        drawn: predictions.
        heldout: scans that nothing was trained on.
        features: their visual tokens [n, P, E].
        train: training scans.
        train_features: their visual tokens.
    """
    own = drawn.tokens[matching_requests(heldout, drawn.requests)]
    means = scoring.class_means(train_features, train.digits)
    overall = train_features.mean(axis=0, keepdims=True)
    plain = drawn.of_kind("class")
    predicted, asked = drawn.tokens[plain], drawn.asked[plain]
    return {
        "cosine": float(scoring.cosine(own, features).mean()),
        "cosine_class_mean_baseline": float(scoring.cosine(means[heldout.digits], features).mean()),
        "cosine_global_mean_baseline": float(scoring.cosine(overall, features).mean()),
        "cosine_nearest_heldout": float(scoring.nearest_cosine(predicted, features).mean()),
        "cosine_own_class_mean": float(scoring.cosine(predicted, means[asked]).mean()),
        "well_formed_fraction": float(drawn.well_formed.mean()),
        "num_requests": len(drawn.requests),
    }


def picture_scores(
    drawn: Drawn, painted: Painted, reconstructed: Painted, heldout: Scans
) -> dict[str, Any]:
    """Returns the part of the summary about pictures; one without a picture is never recognised.

    Args:
        drawn: requests, in the order of `painted`.
        painted: from predicted tokens.
        reconstructed: from the real tokens of the held-out scans.
        heldout: those scans.
    """
    read = np.where(drawn.well_formed, painted.read, -1)
    groups = {kind: drawn.of_kind(kind) for kind in ("class", "styled", "edit")}
    asked = drawn.asked

    def recognised(kind: str) -> float:
        return scoring.accuracy(read[groups[kind]], asked[groups[kind]])

    both = groups["class"] + groups["styled"]
    styled = [dataclasses.asdict(drawn.requests[index]) for index in groups["styled"]]
    return {
        "generation_accuracy": recognised("class"),
        "styled_accuracy": recognised("styled"),
        "edit_accuracy": recognised("edit"),
        "shuffled_prompt_accuracy": scoring.shuffled_accuracy(read[both], asked[both]),
        "reconstruction_accuracy": scoring.accuracy(reconstructed.read, heldout.digits),
        "reconstruction_mse": float(np.mean((reconstructed.small - heldout.small) ** 2)),
        "style_order": scoring.style_order(painted.small[groups["styled"]], styled),
        "variety": {
            "real_heldout_scans": scoring.variety(heldout.small, heldout.digits),
            "painted_from_real_tokens": scoring.variety(reconstructed.small, heldout.digits),
            "styled_prompts": scoring.variety(
                painted.small[groups["styled"]], asked[groups["styled"]]
            ),
            "class_prompts": scoring.variety(
                painted.small[groups["class"]], asked[groups["class"]]
            ),
        },
    }
