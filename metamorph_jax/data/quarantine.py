"""Bad samples: written down, left out, and counted against a budget.

A bad sample never is replaced by another one. It is listed in `quarantine.jsonl`; found while the
data is measured it takes no part, found later (an image that cannot be read) its place in the row
stays empty, so that shapes and order never move.
"""

import collections
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from metamorph_jax.data.examples import Records
from metamorph_jax.data.faults import OF_MEDIA, BadSample, Reason
from metamorph_jax.errors import UserError

# Listed, but no sign of a broken source: they do not count against the budget.
HARMLESS: frozenset[Reason] = frozenset({"over_long", "nothing_to_learn"})
_NUM_SHOWN = 3
_NAME = "quarantine"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of `quarantine.jsonl`.

    Attributes:
        source: number of the data source.
        where: FILE:LINE of the record.
        reason: what kind of trouble.
        message: the whole story.
        sha256: of the medium or record that is bad; empty if it could not be read.
    """

    source: int
    where: str
    reason: Reason
    message: str
    sha256: str = ""

    @classmethod
    def of(cls, records: Records, index: int, error: BadSample) -> "Finding":
        """Returns what to write down about a record that is a bad sample."""
        sha256 = error.sha256 or records.content_hash(index)
        source, where = records.source_of(index), records.where(index)
        return cls(source, where, error.reason, str(error), sha256)


def quarantine_file(folder: Path, process_index: int = 0) -> Path:
    """Returns where a process writes bad samples; all processes read the files of all."""
    return folder / (f"{_NAME}.{process_index}.jsonl" if process_index else f"{_NAME}.jsonl")


class Built(NamedTuple):
    """A batch, and the bad samples whose places in it are empty."""

    batch: Any
    findings: list[Finding]


class Quarantine:
    """The bad samples of one stage.

    Args:
        paths: of the sources.
        sizes: records of each.
        max_bad_fraction: of a source's records that may be bad.
        file: where they are written; None: nowhere.
        data_fingerprint: of the stage's data; what was written about other data is not counted.
    """

    def __init__(
        self,
        paths: Sequence[str],
        sizes: Sequence[int],
        max_bad_fraction: float,
        file: Path | None = None,
        data_fingerprint: str = "",
    ):
        self._paths, self._sizes, self._fraction = paths, sizes, max_bad_fraction
        self._file, self._data = file, data_fingerprint[:12]
        self._known: dict[tuple[int, str, str], Finding] = {}
        self._bad: list[set[str]] = [set() for _ in paths]
        for finding in self._written():
            self._remember(finding)

    def __len__(self) -> int:
        return len(self._known)

    @property
    def findings(self) -> list[Finding]:
        """Everything found so far."""
        return list(self._known.values())

    @property
    def killers(self) -> list[str]:
        """FILE:LINE of the samples that ended data workers."""
        return [found.where for found in self._known.values() if found.reason == "killed_worker"]

    def begin(self, measured: Iterable[Finding], still_bad: Callable[[set[str]], set[str]]) -> None:
        """Takes up what was measured, and counts it with what an earlier run found.

        If that is too much, media of the earlier run are looked at again: they may be repaired.

        Args:
            measured: bad samples that this run has found already.
            still_bad: FILE:LINE of samples -> those of them that are bad today.

        Raises:
            UserError: see `add`.
        """
        measured = list(measured)
        self._write([finding for finding in measured if self._remember(finding)])
        today = {finding.where for finding in measured}
        for source in range(len(self._paths)):
            if self._is_over(source):
                earlier = {
                    finding.where
                    for finding in self._known.values()
                    if finding.source == source and finding.reason in OF_MEDIA
                } - today
                self._forget(source, earlier - still_bad(earlier))
            self._check(source)

    def add(self, findings: Iterable[Finding]) -> None:
        """Writes down what is new.

        Raises:
            UserError: a source has more bad samples than its budget; says which and where.
        """
        new = [finding for finding in findings if self._remember(finding)]
        self._write(new)
        if new:  # what other processes found counts, too
            for finding in self._written():
                self._remember(finding)
        for source in sorted({finding.source for finding in new}):
            self._check(source)

    def sift(self, steps: Iterator[Built]) -> Iterator[Any]:
        """Yields the batches of `steps`, putting what is bad in them into quarantine.

        Raises:
            UserError: see `add`.
        """
        try:
            for built in steps:
                self.add(built.findings)
                yield built.batch
        finally:
            steps.close()

    def _remember(self, finding: Finding) -> bool:
        """Returns whether the finding is new."""
        key = (finding.source, finding.where, finding.reason)
        if key in self._known:
            return False
        self._known[key] = finding
        if finding.reason not in HARMLESS:
            self._bad[finding.source].add(finding.where)
        return True

    def _write(self, findings: list[Finding]) -> None:
        if self._file is None or not findings:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with open(self._file, "a+b") as file:
            if file.tell() and not _ends_line(file):  # a run was killed while it wrote
                file.write(b"\n")
            for finding in findings:
                fields = {"data": self._data} | dataclasses.asdict(finding)
                line = json.dumps(fields, ensure_ascii=False) + "\n"
                file.write(line.encode("utf-8", "backslashreplace"))

    def _forget(self, source: int, repaired: set[str]) -> None:
        """Takes samples out of the list."""
        if not repaired:
            return
        self._bad[source] -= repaired
        self._known = {
            key: finding
            for key, finding in self._known.items()
            if finding.source != source or finding.where not in repaired
        }
        for file in self._files():
            file.unlink(missing_ok=True)
        self._write(self.findings)

    def _files(self) -> list[Path]:
        """Returns the files of all processes."""
        if self._file is None:
            return []
        return sorted(self._file.parent.glob(f"{_NAME}*.jsonl"))

    def _written(self) -> Iterator[Finding]:
        for file in self._files():
            yield from _read(file, self._data)

    def _is_over(self, source: int) -> bool:
        return len(self._bad[source]) > self._fraction * self._sizes[source]

    def _check(self, source: int) -> None:
        num_bad, size = len(self._bad[source]), self._sizes[source]
        if not self._is_over(source):
            return
        findings = [
            finding
            for finding in self._known.values()
            if finding.source == source and finding.reason not in HARMLESS
        ]
        if size <= 1 / max(self._fraction, 1e-12) and num_bad == 1:
            listed = findings[0].message
        else:
            counts = collections.Counter(finding.reason for finding in findings)
            listed = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
            listed += "".join(f"\n  - {finding.message}" for finding in findings[:_NUM_SHOWN])
            listed += "\n  - ..." * (len(findings) > _NUM_SHOWN)
        where = f"; all are listed in {self._file}" if self._file else ""
        raise UserError(
            f"{listed}\n{num_bad} of the {size:,} records of {self._paths[source]} are bad, more "
            f"than max_bad_fraction={self._fraction:g} allows{where}; repair or remove them, or "
            "raise data.max_bad_fraction of the stage to train without them"
        )


def find_bad(records: Records, load: Callable[[int, str], object], wheres: set[str]) -> set[str]:
    """Returns which samples, by FILE:LINE, cannot be loaded.

    Args:
        records: all of them.
        load: loads one by number and FILE:LINE, or raises BadSample.
        wheres: the samples that are looked at.
    """
    bad = set()
    for index in range(len(records)) if wheres else ():
        where = records.where(index)
        if where in wheres:
            try:
                load(index, where)
            except BadSample:
                bad.add(where)
    return bad


def _read(file: Path, data: str) -> Iterator[Finding]:
    """Yields what was written about some data; half a line, of a run that was killed, is lost."""
    if not file.exists():
        return
    for line in file.read_text("utf-8", "replace").splitlines():
        try:
            fields = json.loads(line)
            if fields.pop("data") == data:
                yield Finding(**fields)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue


def _ends_line(file: BinaryIO) -> bool:
    file.seek(-1, 2)
    return file.read(1) == b"\n"
