"""A stage's data, all of it or a random part: what is there, what is wrong, what rows it fills.

`examine.py` looks at each record, in threads or processes; here the answers are put together. The
plan is the one that training would make of the same examples.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np

from metamorph_jax.config.schema_run import DataConfig, SourceConfig
from metamorph_jax.data.conversation import Conversation
from metamorph_jax.data.example_table import ExampleTable
from metamorph_jax.data.examples import Records
from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.geometry import GREY, Processor
from metamorph_jax.data.images import ImageLoader
from metamorph_jax.data.keyed_random import random_order
from metamorph_jax.data.lint.duplicates import find_duplicates
from metamorph_jax.data.lint.examine import CHUNK, ROW, Examined, Examiner, Writing
from metamorph_jax.data.lint.findings import FindingLog
from metamorph_jax.data.lint.media import Depth, MediaReader
from metamorph_jax.data.loader import iterate_steps
from metamorph_jax.data.packing import num_shown
from metamorph_jax.data.pipeline import check_sources, image_loaders
from metamorph_jax.data.plan import RowShape, Section, StagePlan
from metamorph_jax.data.sources import open_source
from metamorph_jax.data.spans import Span, conversation_spans, example_spans
from metamorph_jax.errors import UserError
from metamorph_jax.typing import Shaped

_SAMPLES_PER_KIND = 4
OnProgress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageToSurvey:
    """What a stage trains on, as far as its data is concerned.

    Attributes:
        writing: None: tokens are not counted, and no rows are planned.
        image_size: side of the tower's input, in pixels.
        processor: family of the tower, which decides how images are fitted.
        pad_color: RGB colour of the padding.
        global_batch_size: rows per step; None: nobody said.
        total_steps: of the stage; None: nobody said.
        seed: of the run.
    """

    name: str
    objective: Literal["vpit", "contrastive"] = "vpit"
    data: DataConfig
    writing: Writing | None
    image_size: int
    processor: Processor = "siglip"
    pad_color: tuple[int, int, int] = GREY
    global_batch_size: int | None = None
    total_steps: int | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class SourceSurvey:
    """What a source holds.

    Attributes:
        size: records that take part.
        rows: of those that were looked at, see `examine.ROW`.
    """

    config: SourceConfig
    size: int
    rows: Shaped[np.ndarray, "n"]


@dataclasses.dataclass(frozen=True)
class PlanSurvey:
    """What the first epoch's rows are like.

    Attributes:
        num_examples: shown in an epoch.
        num_rows: of an epoch.
        fill_fraction: of their positions that hold a token; None: they are no token rows.
        image_fill_fraction: of their places for images; None: they have none.
        steps_per_epoch: None: nobody said how many rows a step has.
        total_epochs: that the stage's steps amount to; None: nobody said.
        is_estimate: extrapolated from a part of the records.
    """

    num_examples: int
    num_rows: int
    fill_fraction: float | None
    image_fill_fraction: float | None
    steps_per_epoch: float | None
    total_epochs: float | None
    is_estimate: bool


class Sample(NamedTuple):
    """A record to be shown.

    Attributes:
        spans: all of it, in order.
        pixels: of each of its images, as the tower gets them; none if they cannot be read.
    """

    where: str
    kind: str
    length: int
    spans: list[Span]
    pixels: list[Shaped[np.ndarray, "size size 3"]]


@dataclasses.dataclass(frozen=True)
class Survey:
    """What is known of a stage's data.

    Attributes:
        plan: None: tokens were not counted.
    """

    stage: StageToSurvey
    sources: tuple[SourceSurvey, ...]
    plan: PlanSurvey | None
    samples: tuple[Sample, ...]

    @property
    def num_records(self) -> int:
        """Records that were looked at."""
        return sum(len(source.rows) for source in self.sources)

    @property
    def worst_fraction(self) -> float:
        """Largest share of a source's records that cannot be trained on."""
        return max(float(np.mean(~source.rows["is_readable"])) for source in self.sources)


def survey_stage(
    stage: StageToSurvey,
    log: FindingLog,
    *,
    depth: Depth = "decode",
    max_records: int | None = None,
    num_workers: int = 0,
    on_progress: OnProgress | None = None,
) -> Survey:
    """Returns what a stage trains on, and writes what is wrong with it into `log`.

    Args:
        stage: of the recipe.
        log: of findings.
        depth: how closely images are looked at.
        max_records: of each source, a random choice; None: all.
        num_workers: processes; 0: threads of this one.
        on_progress: told how many records of how many are done.

    Raises:
        UserError: sources cannot be used as a whole; names all of them.
    """
    check_sources(stage.data)
    sizes = _open_all(stage.data)
    data = dataclasses.replace(
        stage.data, sources=tuple(_limited(source, max_records) for source in stage.data.sources)
    )
    # The key of training, so that a part of a source is the same part.
    key = f"{stage.seed}/{stage.name}"
    records = Records(data, key)
    loaders = image_loaders(data, stage.image_size, stage.pad_color, stage.processor)
    readers = _readers(loaders, depth)
    examiner = Examiner(records, readers, data, stage.objective, stage.writing)
    rows, images = np.zeros(len(records), ROW), []
    for begin, examined in examined_chunks(examiner, num_workers):
        rows[begin : begin + len(examined.rows)] = examined.rows
        images.append(examined.images)
        log.add(examined.findings)
        if on_progress is not None:
            on_progress(begin + len(examined.rows), len(records))
    log.add(find_duplicates(examiner, rows, np.concatenate(images)))
    ends = np.cumsum(records.sizes)
    sources = tuple(
        SourceSurvey(config, size, part)
        for config, size, part in zip(data.sources, sizes, np.split(rows, ends[:-1]), strict=True)
    )
    plan = _plan(stage, records, rows, sources, key)
    return Survey(stage, sources, plan, tuple(_samples(examiner, rows, key)))


def _open_all(data: DataConfig) -> list[int]:
    """Returns how many records of each source take part."""
    sizes, troubles = [], []
    for source in data.sources:
        try:
            sizes.append(min(len(open_source(source.path)), source.max_count or 2**62))
        except UserError as error:
            troubles.append(str(error))
    if troubles:
        raise UserError("\n".join(troubles))
    return sizes


def _limited(source: SourceConfig, max_records: int | None) -> SourceConfig:
    counts = [count for count in (source.max_count, max_records) if count is not None]
    return dataclasses.replace(source, max_count=min(counts, default=None))


def _readers(loaders: list[ImageLoader], depth: Depth) -> list[MediaReader]:
    """Returns one reader per source; sources with the same folder share one."""
    by_loader = {id(loader): MediaReader(loader, depth) for loader in loaders}
    return [by_loader[id(loader)] for loader in loaders]


def examined_chunks(examiner: Examiner, num_workers: int) -> Iterator[tuple[int, Examined]]:
    """Yields (number of the first record, what was seen in it and those that follow), in order.

    Args:
        examiner: of the records.
        num_workers: processes; a record that ends one twice is left out and said. 0: threads.
    """
    num_chunks = -(-len(examiner.records) // CHUNK)
    if num_chunks == 1 and num_workers == 0:  # not worth a thread
        yield 0, examiner(0)
        return
    prefetched = max(4, 2 * num_workers)
    chunks = iterate_steps(examiner, 0, num_workers, prefetched, examiner.journal)
    for chunk, examined in zip(range(num_chunks), chunks, strict=False):
        yield chunk * CHUNK, examined
    chunks.close()


def _plan(
    stage: StageToSurvey,
    records: Records,
    rows: Shaped[np.ndarray, "n"],
    sources: tuple[SourceSurvey, ...],
    key: str,
) -> PlanSurvey | None:
    """Returns the rows of an epoch; of a part of the records, what follows for the whole."""
    if stage.writing is None or not rows["length"].any():
        return None
    data = stage.data
    usable = [int(np.count_nonzero(source.rows["length"])) for source in sources]
    whole = [
        round(source.size * count / max(len(source.rows), 1))
        for source, count in zip(sources, usable, strict=True)
    ]
    num_examples = sum(
        num_shown(size, source.config.weight) for size, source in zip(whole, sources, strict=True)
    )
    if stage.objective == "contrastive":
        num_rows, fill, image_fill = num_examples, None, None
    else:
        shape = RowShape(
            max_seq_len=data.max_seq_len, max_images=data.max_images, packing=data.packing
        )
        sections = [Section(0, tuple(source.config.weight for source in sources))]
        planned = StagePlan(
            ExampleTable(rows, ()), records.sizes, sections, shape, key, 1, ""
        ).epoch(0)
        shown, size = rows[planned.examples], max(len(planned), 1)
        fill = int(shown["length"].sum(dtype=np.int64)) / (size * data.max_seq_len)
        num_images = int(shown["num_images"].sum(dtype=np.int64))
        image_fill = num_images / (size * data.max_images) if data.max_images else None
        num_rows = round(len(planned) * num_examples / max(len(planned.examples), 1))
    batch = stage.global_batch_size
    steps = num_rows / batch if batch else None
    return PlanSurvey(
        num_examples=num_examples,
        num_rows=num_rows,
        fill_fraction=fill,
        image_fill_fraction=image_fill,
        steps_per_epoch=steps,
        total_epochs=stage.total_steps / steps if stage.total_steps and steps else None,
        is_estimate=whole != usable,
    )


def _samples(examiner: Examiner, rows: Shaped[np.ndarray, "n"], key: str) -> Iterator[Sample]:
    """Yields a handful of good records of each kind, taking turns between its sources."""
    records = examiner.records
    by_kind: dict[str, list[list[int]]] = {}
    order = random_order(f"{key}/samples", len(rows))
    order = order[rows["is_readable"][order]]
    sources = np.searchsorted(np.cumsum(records.sizes), order, side="right")
    for number, config in enumerate(records.configs):
        mine = order[sources == number][:_SAMPLES_PER_KIND]
        kind = config.kind if examiner.objective == "vpit" else "caption"
        by_kind.setdefault(kind, []).append(mine.tolist())
    for kind, lists in by_kind.items():
        turns = [index for nth in _zip_longest(lists) for index in nth]
        for index in turns[:_SAMPLES_PER_KIND]:
            yield _sample(examiner, index, kind, int(rows["length"][index]))


def _zip_longest(lists: list[list[int]]) -> Iterator[list[int]]:
    """Yields the first of all lists, the second of all, ..., as far as there are any."""
    for nth in range(max(map(len, lists), default=0)):
        yield [values[nth] for values in lists if nth < len(values)]


def _sample(examiner: Examiner, index: int, kind: str, length: int) -> Sample:
    conversation: Conversation = examiner.conversation(index)
    example = examiner.example(index, conversation)
    if example is None:
        spans, images = conversation_spans(conversation), conversation.images
    else:  # a template may put images elsewhere
        spans, images = example_spans(example, examiner.writing.tokenizer), example.images
    reader = examiner.readers[examiner.records.source_of(index)]
    try:
        pixels = reader.loader.load_all(images, conversation.where)
    except BadSample:  # nobody looked at these images before
        pixels = []
    return Sample(conversation.where, kind, length, spans, pixels)
