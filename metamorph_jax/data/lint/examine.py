"""One record, looked at from all sides: can it be read, rendered, shown, and is it meant so?

A pure function of the record, run in threads or worker processes. What takes several records to
see is in `duplicates.py` and `survey.py`.
"""

import dataclasses
import functools
import re
from typing import Literal, NamedTuple

import numpy as np

from metamorph_jax.config.schema_run import DataConfig
from metamorph_jax.data.captions import image_and_caption
from metamorph_jax.data.conversation import Conversation, Image, Text, Turn
from metamorph_jax.data.death_journal import DeathJournal
from metamorph_jax.data.examples import Records, nothing_to_learn
from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.lint.findings import Finding, short_hash
from metamorph_jax.data.lint.media import Looked, MediaReader
from metamorph_jax.data.lint.texts import special_pattern, text_troubles
from metamorph_jax.data.media import Media, VideoFrame, media_key
from metamorph_jax.data.packing import cut_example
from metamorph_jax.data.templates import AnyTemplate, Example, render_example
from metamorph_jax.data.tokenizer import Tokenizer
from metamorph_jax.data.views import ViewLayout, expand_images
from metamorph_jax.typing import Int, Shaped

CHUNK = 64  # records examined by one call of a worker
MIN_SIDE = 8  # pixels; a smaller image is hardly one
ROW = np.dtype(
    [
        ("length", "<i4"),  # tokens in a row; 0: it cannot be rendered, or nobody counts
        ("num_images", "<i4"),  # in a row; of several views, as many
        ("num_image_tokens", "<i4"),  # in a row
        ("num_supervised", "<i4"),  # text tokens
        ("num_answer_images", "<i4"),
        ("is_cut", "?"),
        ("is_readable", "?"),  # nothing stops it from being trained on
        ("num_answers", "<i4"),
        ("num_videos", "<i4"),
        ("content", "<i8"),  # short hash of what it says and shows; 0: unknown
        ("id", "<i8"),  # short hash of its file and id; 0: none
    ]
)


@dataclasses.dataclass(frozen=True)
class Writing:
    """How conversations become tokens.

    Attributes:
        num_visual_tokens: P, visual tokens of an image.
        layout: of images that are shown as several views; None: none is.
    """

    tokenizer: Tokenizer
    template: AnyTemplate
    num_visual_tokens: int
    layout: ViewLayout | None = None


class Examined(NamedTuple):
    """What was seen in some neighbouring records.

    Attributes:
        rows: one per record, see `ROW`.
        findings: in order.
        images: of each image file that was read: number of the record, short hash of its name,
            short hash of its bytes.
    """

    rows: Shaped[np.ndarray, "n"]
    findings: list[Finding]
    images: Int[np.ndarray, "images 3"]


@dataclasses.dataclass(frozen=True)
class Examiner:
    """Chunk number -> what is seen in its records; picklable.

    Attributes:
        records: of a stage.
        readers: one per source.
        data: shape of the rows.
        objective: of the stage; `contrastive` wants images with captions.
        writing: None: tokens are not counted.
        journal: knows the records that ended worker processes.
    """

    records: Records
    readers: list[MediaReader]
    data: DataConfig
    objective: Literal["vpit", "contrastive"]
    writing: Writing | None
    journal: DeathJournal = dataclasses.field(default_factory=DeathJournal)

    def __call__(self, chunk: int) -> Examined:
        """Returns what is seen in records chunk * CHUNK and following; none behind the last."""
        begin = min(chunk * CHUNK, len(self.records))
        end = min(begin + CHUNK, len(self.records))
        rows = np.zeros(end - begin, ROW)
        findings: list[Finding] = []
        images: list[tuple[int, int, int]] = []
        for index in range(begin, end):
            seen = _Seen(self.records.where(index))
            try:
                self.journal.check(seen.where)
                with self.journal.entering(seen.where):
                    self._examine(index, rows[index - begin], seen)
            except BadSample as error:
                seen.fail(error)
            is_readable = all(finding.severity != "error" for finding in seen.findings)
            rows[index - begin]["is_readable"] = is_readable
            if not is_readable:
                rows[index - begin]["content"] = 0  # that it is there twice does not matter
            findings += seen.findings
            images += [(index, *image) for image in seen.images]
        return Examined(rows, findings, np.array(images, np.int64).reshape(-1, 3))

    def conversation(self, index: int) -> Conversation:
        """Returns what is made of a record; of a caption, an answer to its image.

        Raises:
            BadSample: nothing can be made of it.
        """
        if self.objective == "vpit":
            loader = self.readers[self.records.source_of(index)].loader
            return self.records.conversation(index, loader, self.data.max_images)
        media, caption = image_and_caption(self.records[index])
        said = (Text(caption),) if caption else ()
        turns = (Turn("user", (Image(media),)), Turn("assistant", said))
        return Conversation(turns, self.records.where(index))

    def example(self, index: int, conversation: Conversation) -> Example | None:
        """Returns what is trained on; None if nobody said how, or if it is a caption.

        Args:
            index: of the record.
            conversation: that was made of it.

        Raises:
            BadSample: it cannot be rendered.
        """
        if self.writing is None or self.objective == "contrastive":
            return None
        writing = self.writing
        example = render_example(
            conversation, writing.template, writing.tokenizer, writing.num_visual_tokens
        )
        loader = self.readers[self.records.source_of(index)].loader
        size_of = functools.partial(loader.image_size, where=example.where)
        return expand_images(example, writing.layout, size_of)

    def _examine(self, index: int, row: np.void, seen: "_Seen") -> None:
        record = self.records[index]
        if (id_ := record.extra.get("id")) not in (None, ""):
            row["id"] = short_hash(f"{record.file}\0{id_!r}")
        conversation = self.conversation(index)
        medias = tuple(conversation.images)
        row["num_answers"] = sum(turn.is_answer for turn in conversation.turns)
        is_video = record.video is not None or any(isinstance(m, VideoFrame) for m in medias)
        row["num_videos"] = is_video
        for reason, trouble in text_troubles(conversation, self._special):
            seen.add(reason, trouble)
        looked = self.readers[self.records.source_of(index)].look(medias, seen.where)
        seen.look(medias, looked)
        row["content"] = _content_hash(conversation, looked)
        self._measure(index, conversation, row, seen)

    def _measure(self, index: int, conversation: Conversation, row: np.void, seen: "_Seen") -> None:
        """Fills in what the record takes of a row, and what it gives to learn."""
        answers = [turn for turn in conversation.turns if turn.is_answer]
        example = self.example(index, conversation)
        if example is None:
            row["num_images"] = len(conversation.images)
            row["num_answer_images"] = sum(
                isinstance(part, Image) for turn in answers for part in turn.parts
            ) * (self.objective == "vpit")
            if not answers:
                seen.add("nothing_to_learn", "there is no answer; add a turn from 'gpt'")
            self._measure_caption(answers, row, seen)
            return
        data = self.data
        cut = cut_example(example, data.max_seq_len, data.max_images)
        row["num_images"] = len(cut.images)
        row["num_image_tokens"] = np.count_nonzero(cut.image_index >= 0)
        row["num_answer_images"] = sum(cut.image_is_answer)
        row["num_supervised"] = cut.supervised.sum()
        row["is_cut"] = cut is not example
        if trouble := nothing_to_learn(cut, cut is not example):
            seen.add("nothing_to_learn", trouble)
            return
        row["length"] = len(cut)
        if cut is not example:
            seen.add(
                "over_long",
                f"{len(example):,} tokens and {len(example.images)} images are cut to "
                f"{len(cut):,} and {len(cut.images)} (max_seq_len={data.max_seq_len}, "
                f"max_images={data.max_images}); shorten or split it",
            )

    def _measure_caption(self, answers: list[Turn], row: np.void, seen: "_Seen") -> None:
        """Counts the tokens of a caption."""
        if self.writing is None or self.objective == "vpit":
            return
        texts = [part.text for turn in answers for part in turn.parts if isinstance(part, Text)]
        ids = [id_ for text in texts for id_ in self.writing.tokenizer.encode_text(text)]
        row["length"] = row["num_supervised"] = min(len(ids), self.data.max_seq_len)
        row["is_cut"] = len(ids) > self.data.max_seq_len
        if row["is_cut"]:
            seen.add(
                "over_long",
                f"a caption of {len(ids):,} tokens is cut to {self.data.max_seq_len:,}; shorten it",
            )

    @functools.cached_property
    def _special(self) -> re.Pattern[str]:
        return special_pattern(self.writing.tokenizer.names if self.writing else ())


class _Seen:
    """Findings and images of one record."""

    def __init__(self, where: str):
        self.where = where
        self.findings: list[Finding] = []
        self.images: list[tuple[int, int]] = []

    def add(self, reason: str, trouble: str) -> None:
        """Takes note of a trouble."""
        self.findings.append(Finding(self.where, reason, trouble))

    def fail(self, error: BadSample) -> None:
        """Takes note of why the record cannot be looked at further, unless that is known."""
        finding = Finding.of(self.where, error)
        if all(finding.reason != known.reason for known in self.findings):
            self.findings.append(finding)

    def look(self, medias: tuple[Media, ...], looked: list[Looked | BadSample]) -> None:
        """Takes note of what media are like, each once."""
        for media, found in dict(zip(medias, looked, strict=True)).items():
            if isinstance(found, BadSample):
                finding = Finding.of(self.where, found)
                self.findings += [finding] * (finding not in self.findings)
                continue
            if found.size and min(found.size) < MIN_SIDE:
                width, height = found.size
                self.add("tiny_image", f"image {media_name(media)} has {width}x{height} pixels")
            if found.content:
                self.images.append((short_hash(media_key(media)), found.content))


def media_name(media: Media) -> str:
    """Returns how a medium is called in a message."""
    return ascii(media) if isinstance(media, str) else str(media)


def _content_hash(conversation: Conversation, looked: list[Looked | BadSample]) -> int:
    """Returns a hash that conversations share which say and show the same."""
    contents = iter(looked)
    said = []
    for turn in conversation.turns:
        said.append(f"turn {turn.role}")
        for part in turn.parts:
            if isinstance(part, Image):
                found = next(contents)
                known = found.content if isinstance(found, Looked) else 0
                said.append(f"image {known or media_key(part.media)}")
            else:
                said.append(f"text {part.text}")
    return short_hash(repr(said))
