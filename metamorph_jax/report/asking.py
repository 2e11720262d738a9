"""Held-out questions: read from a LLaVA-format file, put to the model, judged, and written down.

A record may carry `kind` (answers are counted by kind) and `label`, the word that a right answer
contains; without a label, an answer is right if it equals the expected one but for case,
punctuation and spacing. How the result looks on the page is in `question_sections.py`.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from metamorph_jax.data.conversation import IMAGE_TAG, Text, Turn, read_conversation
from metamorph_jax.data.images import ImageLoader
from metamorph_jax.data.records import Record
from metamorph_jax.data.sources import open_source
from metamorph_jax.decoding.generator import Generator, Prompt, Sampling
from metamorph_jax.errors import UserError

ANSWERS_FILE = "answers.jsonl"
QUESTIONS_FILE = "heldout_questions.jsonl"
_CHUNK = 512  # questions handed to the generator at once: their images are held in memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """The first question of a record.

    Attributes:
        identity: the record's id, or FILE:LINE.
        text: of the question, with "<image>" where an image is.
        images: files, in order.
        expected: the file's own answer.
        kind: answers are counted by it; "" if the record has none.
        label: the word that a right answer contains; "" if the record has none.
    """

    identity: str
    text: str
    images: tuple[Path, ...]
    expected: str
    kind: str = ""
    label: str = ""


@dataclasses.dataclass(frozen=True)
class AnsweredQuestion:
    """A question with what the model said to it."""

    question: Question
    said: str
    is_right: bool


def load_questions(file: Path, image_root: Path, limit: int | None = None) -> list[Question]:
    """Returns the first question of each record.

    Args:
        file: LLaVA format, `.json` or `.jsonl`.
        image_root: folder that image paths are relative to and may not leave.
        limit: take this many records, evenly spread over the file; None: all.

    Raises:
        UserError: a record is malformed, has no answer, or names an image that is not there.
    """
    records = open_source(file)
    count = len(records) if limit is None else min(limit, len(records))
    loader = ImageLoader(str(image_root), size=1)
    return [_question(records[i * len(records) // count], loader) for i in range(count)]


def ask(
    generator: Generator, questions: Sequence[Question], sampling: Sampling
) -> list[AnsweredQuestion]:
    """Returns the answers to all questions, in order, judged.

    Args:
        generator: of the checkpoint.
        questions: any number; they are put in large batches.
        sampling: how to answer.
    """
    labels = _labels_by_kind(questions)
    answered = []
    for start in range(0, len(questions), _CHUNK):
        chunk = questions[start : start + _CHUNK]
        prompts = [Prompt(question.text, question.images) for question in chunk]
        answers = generator.generate(prompts, sampling)
        for question, answer in zip(chunk, answers, strict=True):
            is_right = judge(question, answer.text, labels[question.kind])
            answered.append(AnsweredQuestion(question, answer.text.strip(), is_right))
    return answered


def judge(question: Question, said: str, labels: frozenset[str] = frozenset()) -> bool:
    """Returns whether an answer is right.

    Args:
        question: with a label, that word must be in the answer, and no other of `labels`.
        said: the model's answer.
        labels: of all questions of this kind.
    """
    if not question.label:
        return normalize(said) == normalize(question.expected)
    label, answer = normalize(question.label), f" {normalize(said)} "
    others = labels - {label}
    return f" {label} " in answer and not any(f" {other} " in answer for other in others)


def normalize(text: str) -> str:
    """Returns lower-case words separated by single spaces, without punctuation."""
    return " ".join(re.findall(r"[\w<>]+", text.lower()))


def accuracy_by_kind(answered: Iterable[AnsweredQuestion]) -> dict[str, tuple[int, int]]:
    """Returns (right, asked) by kind, in order of first appearance."""
    counts: dict[str, tuple[int, int]] = {}
    for item in answered:
        right, asked = counts.get(item.question.kind, (0, 0))
        counts[item.question.kind] = (right + item.is_right, asked + 1)
    return counts


def write_answers(path: Path, answered: Iterable[AnsweredQuestion]) -> None:
    """Writes one JSON object a line: question, images, expected answer, answer, judgement."""
    with open(path, "w", encoding="utf-8") as file:
        for item in answered:
            fields = dataclasses.asdict(item.question)
            fields["images"] = [str(image) for image in item.question.images]
            fields |= {"answer": item.said, "right": item.is_right}
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")


def _labels_by_kind(questions: Sequence[Question]) -> dict[str, frozenset[str]]:
    kinds = {question.kind for question in questions}
    return {
        kind: frozenset(normalize(q.label) for q in questions if q.kind == kind and q.label)
        for kind in kinds
    }


def _question(record: Record, loader: ImageLoader) -> Question:
    """Returns what the user says first and what should be answered."""
    turns = read_conversation(record).turns
    asked = next(index for index, turn in enumerate(turns) if turn.role == "user")
    if len(turns) <= asked + 1:
        raise UserError(f"{record.where}: the question has no answer to compare with")
    images = tuple(
        Path(loader.resolve(part.media, record.where))
        for part in turns[asked].parts
        if not isinstance(part, Text)
    )
    return Question(
        identity=str(record.extra.get("id", record.where)),
        text=_text(turns[asked]),
        images=images,
        expected=_text(turns[asked + 1]).strip(),
        kind=str(record.extra.get("kind", "")),
        label=str(record.extra.get("label", "")),
    )


def _text(turn: Turn) -> str:
    return "".join(part.text if isinstance(part, Text) else IMAGE_TAG for part in turn.parts)
