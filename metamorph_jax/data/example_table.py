"""What rows are planned from: length, images and supervision of every example, measured once.

Measuring reads and renders everything; a table is therefore kept beside the run and read again
when the run goes on. Images are not opened, except for their sizes where views depend on them.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from metamorph_jax.data.death_journal import DeathJournal
from metamorph_jax.data.examples import Examples
from metamorph_jax.data.faults import OF_MEDIA, BadSample
from metamorph_jax.data.kept_files import open_array, save_array, save_text
from metamorph_jax.data.loader import iterate_steps
from metamorph_jax.data.quarantine import Finding
from metamorph_jax.typing import Int, Shaped

TABLE_VERSION = 1  # to be raised when the same records give other examples
_MAX_LISTED, _MAX_LISTED_CUTS = 200_000, 20_000  # findings; the rest is only counted
_CHUNK = 256  # examples measured by one call of a worker
_ROW = np.dtype(
    [
        ("length", "<i4"),
        ("num_images", "<i4"),
        ("num_supervised", "<i4"),
        ("num_answer_images", "<i4"),
        ("is_cut", "?"),
    ]
)
OnProgress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class ExampleTable:
    """A line per example, in the order of their numbers.

    Attributes:
        rows: length (tokens, visual ones included; 0: bad), num_images, num_supervised (text
            tokens), num_answer_images, is_cut.
        findings: the bad ones, and those that had to be cut.
    """

    rows: Shaped[np.ndarray, "examples"]
    findings: tuple[Finding, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def usable(self) -> Int[np.ndarray, "usable"]:
        """Numbers of the examples that can be shown."""
        return np.flatnonzero(self.rows["length"])

    def total(self, name: str) -> int:
        """Returns the sum of a column."""
        return int(self.rows[name].sum(dtype=np.int64))


@dataclasses.dataclass(frozen=True)
class _Measure:
    """Chunk number -> its rows and findings; picklable, for worker processes."""

    examples: Examples
    journal: DeathJournal = dataclasses.field(default_factory=DeathJournal)

    def __call__(self, chunk: int) -> tuple[Shaped[np.ndarray, "count"], list[Finding]]:
        begin = min(chunk * _CHUNK, len(self.examples))
        end = min(begin + _CHUNK, len(self.examples))
        rows, findings = np.zeros(end - begin, _ROW), []
        for index in range(begin, end):
            rows[index - begin], finding = self.one(index)
            findings += [finding] * (finding is not None)
        return rows, findings

    def one(self, index: int) -> tuple[tuple, Finding | None]:
        """Returns the row of an example, and what is bad in it."""
        records = self.examples.records
        where = records.where(index)
        try:
            self.journal.check(where)
            with self.journal.entering(where):  # lengths of videos are read
                example, is_cut = self.examples[index]
        except BadSample as error:
            return (0, 0, 0, 0, False), Finding.of(records, index, error)
        row = (
            len(example),
            len(example.images),
            int(example.supervised.sum()),
            sum(example.image_is_answer),
            is_cut,
        )
        if not is_cut:
            return row, None
        error = BadSample(
            "over_long",
            f"{where}: more than a row holds; cut to {len(example)} tokens and "
            f"{len(example.images)} images (see data.max_seq_len and data.max_images)",
        )
        return row, Finding.of(records, index, error)


def load_or_measure(
    examples: Examples,
    folder: Path | None,
    num_workers: int = 0,
    on_progress: OnProgress | None = None,
    look_again: bool = False,
) -> ExampleTable:
    """Returns the table of a stage's examples.

    Args:
        examples: to be measured.
        folder: where the table is kept; one of the same examples is read instead of measured. None:
            it is not kept.
        num_workers: processes that measure; 0: threads of this one.
        on_progress: told how many examples of how many are done.
        look_again: at examples of a kept table whose media were bad; they may be repaired since.
    """
    fingerprint = f"{TABLE_VERSION}/{examples.fingerprint}"
    if folder is not None and (table := _load(folder, fingerprint)) is not None:
        if look_again and (mended := _mended(examples, table)) is not None:
            _save(folder, fingerprint, mended)
            return mended
        return table
    rows = np.zeros(len(examples), _ROW)
    findings: list[Finding] = []
    for begin, (measured, found) in _measured_chunks(examples, num_workers):
        rows[begin : begin + len(measured)] = measured
        findings += [
            finding
            for finding in found
            if len(findings) < (_MAX_LISTED_CUTS if finding.reason == "over_long" else _MAX_LISTED)
        ]
        if on_progress is not None:
            on_progress(begin + len(measured), len(examples))
    table = ExampleTable(rows, tuple(findings))
    if folder is not None:
        _save(folder, fingerprint, table)
    return table


def _mended(examples: Examples, table: ExampleTable) -> ExampleTable | None:
    """Returns a table with repaired media measured; None if nothing has changed."""
    old = {found.where: found for found in table.findings if found.reason in OF_MEDIA}
    rows, new, measure = table.rows.copy(), {}, _Measure(examples)
    for index in np.flatnonzero(rows["length"] == 0).tolist() if old else ():
        where = examples.records.where(index)
        if where in old:
            rows[index], new[where] = measure.one(index)
    if new == old:
        return None
    kept = (new.get(found.where, found) for found in table.findings)
    return ExampleTable(rows, tuple(found for found in kept if found is not None))


def _measured_chunks(examples: Examples, num_workers: int) -> Iterator[tuple[int, tuple]]:
    num_chunks = -(-len(examples) // _CHUNK)
    if num_chunks <= 4 and num_workers == 0:  # not worth a thread
        measure = _Measure(examples)
        yield from ((chunk * _CHUNK, measure(chunk)) for chunk in range(num_chunks))
        return
    measure = _Measure(examples)
    chunks = iterate_steps(measure, 0, num_workers, prefetch_batches=4, journal=measure.journal)
    for chunk, measured in zip(range(num_chunks), chunks, strict=False):
        yield chunk * _CHUNK, measured
    chunks.close()


def _load(folder: Path, fingerprint: str) -> ExampleTable | None:
    """Returns the table kept in a folder, unless it is of other examples or damaged."""
    try:
        fields = json.loads((folder / "table.json").read_text("utf-8"))
        if fields["fingerprint"] != fingerprint:
            return None
        rows = open_array(folder / "table.npy")
        if rows.dtype != _ROW or len(rows) != fields["examples"]:
            return None
        return ExampleTable(rows, tuple(Finding(**finding) for finding in fields["findings"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save(folder: Path, fingerprint: str, table: ExampleTable) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_array(folder / "table.npy", table.rows)
    fields = {
        "fingerprint": fingerprint,
        "examples": len(table),
        "findings": [dataclasses.asdict(finding) for finding in table.findings],
    }
    save_text(folder / "table.json", json.dumps(fields, ensure_ascii=False) + "\n")
