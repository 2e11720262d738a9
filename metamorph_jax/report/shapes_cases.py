"""Samples of shapes outside of training, as prompts with what a right answer says and shows.

Answers are judged in `shapes_scoring.py`.
"""

import collections
import dataclasses

import numpy as np

from metamorph_jax.config.schema_run import SourceConfig
from metamorph_jax.data.conversation import IMAGE_TAG, Image, Text, Turn
from metamorph_jax.data.images import ImageLoader
from metamorph_jax.data.kinds import make_conversation
from metamorph_jax.data.records import Record
from metamorph_jax.data.shapes.oracle import Wanted, read_picture
from metamorph_jax.data.shapes.scene import IMAGE_SIZE, Split
from metamorph_jax.data.shapes.source import ShapesSource, no_files
from metamorph_jax.decoding.generator import Prompt
from metamorph_jax.typing import Shaped

Picture = Shaped[np.ndarray, "height width 3"]

KINDS = (
    "image_qa",
    "video_qa",
    "text_to_image",
    "pure_video",
    "visual_thinking",
    "image_to_image",
)
MAX_IMAGES = 12  # of a sample, as in the recipe
_NUM_COUNTED = 500  # training records that the commonest answers are counted in


@dataclasses.dataclass(frozen=True)
class Case:
    """One sample that training has not seen.

    Attributes:
        kind: of `KINDS`.
        task: what exactly is asked, as the record says.
        prompt: question and shown pictures.
        answer: the right words behind the last picture of the answer; "" if there are none.
        pictures: the real ones of the answer.
        wanted: what each of them has to show.
        relations: that hold between the wanted shapes, see `oracle.score_picture`.
    """

    kind: str
    task: str
    prompt: Prompt
    answer: str
    pictures: tuple[Picture, ...]
    wanted: tuple[tuple[Wanted, ...], ...]
    relations: tuple[tuple[int, str, int], ...] = ()


def load_cases(kind: str, split: Split, count: int) -> list[Case]:
    """Returns the first `count` samples of a kind and split; always the same."""
    source = ShapesSource(f"shapes:{kind}/{split}?count={count}")
    config, loader = SourceConfig(path=source.path, kind=kind), ImageLoader("", IMAGE_SIZE)
    cases = []
    for index, record in enumerate(source):
        key = f"report/{kind}/{index}"
        asked, answer = make_conversation(record, config, key, no_files, MAX_IMAGES).turns
        shown = loader.load_all(_media(asked), record.where)
        pictures = tuple(loader.load_all(_media(answer), record.where))
        cases.append(
            Case(
                kind,
                record.extra["task"],
                Prompt(_words(asked), tuple(np.array(picture) for picture in shown)),
                last_words(_words(answer)),
                pictures,
                _wanted(kind, record, pictures),
                tuple(map(tuple, record.extra.get("relations", ()))),
            )
        )
    return cases


def last_words(text: str) -> str:
    """Returns what an answer says behind its last picture."""
    return text.rpartition(IMAGE_TAG)[2].strip()


def commonest_answers(kind: str) -> dict[str, str]:
    """Returns the most frequent answer to each task among training records that have answers."""
    counts: dict[str, collections.Counter[str]] = {}
    for record in ShapesSource(f"shapes:{kind}/train?count={_NUM_COUNTED}"):
        if record.turns:
            task = counts.setdefault(record.extra["task"], collections.Counter())
            task[last_words(record.turns[1].text)] += 1
    return {task: counter.most_common(1)[0][0] for task, counter in counts.items()}


def _media(turn: Turn) -> list:
    return [part.media for part in turn.parts if isinstance(part, Image)]


def _words(turn: Turn) -> str:
    return "".join(part.text if isinstance(part, Text) else IMAGE_TAG for part in turn.parts)


def _wanted(
    kind: str, record: Record, pictures: tuple[Picture, ...]
) -> tuple[tuple[Wanted, ...], ...]:
    """Returns what the pictures have to show: the request's words, or what the real ones show."""
    if kind == "text_to_image":
        return (tuple(Wanted(**want) for want in record.extra["wanted"]),)
    if kind == "visual_thinking":  # the shape that fills the crop, whatever else looks in
        color, shape = record.extra["boxes"][0]["name"].split()
        return ((Wanted(shape, color),),)
    return tuple(
        tuple(
            Wanted(item.shape, item.color, item.size, (item.x, item.y))
            for item in (seen.item for seen in read_picture(picture))
        )
        for picture in pictures
    )
