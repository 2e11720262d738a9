"""Bad samples: written down, left out, and counted against a budget.

A bad sample never is replaced by another one. It is listed in `quarantine.jsonl`; found while the
data is measured it takes no part, found later (an image that cannot be read) its place in the row
stays empty, so that shapes and order never move.
"""

import collections
import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metamorph_jax.data.faults import BadSample, Reason
from metamorph_jax.errors import UserError

# Listed, but no sign of a broken source: they do not count against the budget.
HARMLESS: frozenset[Reason] = frozenset({"over_long", "nothing_to_learn"})
_NUM_SHOWN = 3


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
    def of(cls, source: int, where: str, error: BadSample) -> "Finding":
        """Returns what to write down about a bad sample."""
        return cls(source, where, error.reason, str(error), error.sha256)


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
    """

    def __init__(
        self,
        paths: Sequence[str],
        sizes: Sequence[int],
        max_bad_fraction: float,
        file: Path | None = None,
    ):
        self._paths, self._sizes, self._fraction = paths, sizes, max_bad_fraction
        self._file = file
        self._known: dict[tuple[int, str, str], Finding] = {}
        self._bad: list[set[str]] = [set() for _ in paths]
        if file is not None and file.exists():
            for line in file.read_text("utf-8").splitlines():
                self._remember(Finding(**json.loads(line)))

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

    def add(self, findings: Iterable[Finding]) -> None:
        """Writes down what is new.

        Raises:
            UserError: a source has more bad samples than its budget; says which and where.
        """
        new = [finding for finding in findings if self._remember(finding)]
        if not new:
            return
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with open(self._file, "a", encoding="utf-8") as file:
                file.writelines(
                    json.dumps(dataclasses.asdict(finding), ensure_ascii=False) + "\n"
                    for finding in new
                )
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

    def _check(self, source: int) -> None:
        num_bad, size = len(self._bad[source]), self._sizes[source]
        if num_bad <= self._fraction * size:
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
