"""What can be wrong with a record, how bad that is, and the file in which findings are kept.

Every finding belongs to one line of one file. What stops a record from being trained on has the
reason under which quarantine would list it (`faults.py`); the reasons below are only seen here.
"""

import collections
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Literal

from metamorph_jax.data.faults import OF_MEDIA, BadSample

Severity = Literal["error", "warning", "info"]
# Reason -> severity and meaning. An error: the record is not trained on. A warning: it is, but
# look. Info: good to know.
_REASONS: dict[str, tuple[Severity, str]] = {
    "malformed_record": ("error", "no JSON, or fields of other types than expected"),
    "wrong_conversation": ("error", "turns that make no conversation"),
    "tag_mismatch": ("error", "image tags and images that differ in number"),
    "forbidden_path": ("error", "media outside their folder, or no files"),
    "missing_media": ("error", "media that are not there"),
    "unreadable_media": ("error", "damaged media, or of another format"),
    "too_large_media": ("error", "media of more pixels, frames or bytes than are decoded"),
    "killed_worker": ("error", "media whose decoder ends the process"),
    "nothing_to_learn": ("error", "no answer within a row"),
    "over_long": ("warning", "more tokens or images than a row holds: cut, and trained on"),
    "image_tag_in_text": ("warning", "<image> or <video> as mere text"),
    "special_token_in_text": ("warning", "control tokens spelled in a text, where they stay text"),
    "control_characters": ("warning", "characters that no text has"),
    "empty_answer": ("warning", "answers of which only the end is learned"),
    "answer_repeats_question": ("warning", "answers that say what was asked"),
    "tiny_image": ("warning", "images of a few pixels"),
    "duplicate_record": ("warning", "the same conversation and media again"),
    "duplicate_id": ("warning", "the same id for different records of a file"),
    "duplicate_image": ("info", "the same image file under several names"),
}
SEVERITIES = {reason: severity for reason, (severity, _) in _REASONS.items()}
MEANINGS = {reason: meaning for reason, (_, meaning) in _REASONS.items()}


def unchecked(depth: str, has_tokenizer: bool, num_workers: int) -> dict[str, str]:
    """Returns which reasons were not looked for, and why.

    Args:
        depth: how closely media were looked at, see `media.py`.
        has_tokenizer: whether tokens were counted.
        num_workers: processes that could be killed instead of this one.
    """
    found = {} if has_tokenizer else {"over_long": "no tokenizer was named"}
    if num_workers == 0:
        found["killed_worker"] = "needs --workers=1 or more"
    if depth == "none":
        found |= dict.fromkeys(sorted({*OF_MEDIA, "tiny_image"}), "--media=none opens no image")
    if depth != "decode":
        found["duplicate_image"] = f"--media={depth} reads no whole file"
    return found


@dataclasses.dataclass(frozen=True)
class Finding:
    """One trouble of one record.

    Attributes:
        where: FILE:LINE.
        reason: key of `SEVERITIES` and `MEANINGS`.
        trouble: what is wrong and what to do, without FILE:LINE.
    """

    where: str
    reason: str
    trouble: str

    @classmethod
    def of(cls, where: str, error: BadSample) -> "Finding":
        """Returns what a bad sample says about a record, whose FILE:LINE it may know better."""
        file = where.rpartition(":")[0]
        found = re.match(rf"({re.escape(file)}:\d+): ", str(error))
        if found is None:
            return cls(where, error.reason, str(error))
        return cls(found[1], error.reason, str(error)[found.end() :])

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return SEVERITIES[self.reason]

    def __str__(self) -> str:
        return f"{self.where}: {self.severity}: {self.trouble} [{self.reason}]"


class FindingLog:
    """Counts findings and writes them down, each once; only the first of a reason stay in memory.

    Args:
        file: written anew, one JSON object a line.
        num_kept: of each reason.

    Attributes:
        counts: findings by reason.
        kept: the first ones by reason.
    """

    def __init__(self, file: Path, num_kept: int = 50):
        self.counts: collections.Counter[str] = collections.Counter()
        self.kept: dict[str, list[Finding]] = collections.defaultdict(list)
        self._num_kept = num_kept
        self._known: set[int] = set()
        file.parent.mkdir(parents=True, exist_ok=True)
        # A file name that is no Unicode becomes an escape that JSON has, too.
        self._file = open(file, "w", encoding="utf-8", errors="backslashreplace")

    def __enter__(self) -> "FindingLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, findings: Iterable[Finding]) -> None:
        """Takes note of findings; those that another stage had, too, are not repeated."""
        for finding in findings:
            key = short_hash(str(finding))
            if key in self._known:
                continue
            self._known.add(key)
            self.counts[finding.reason] += 1
            if len(self.kept[finding.reason]) < self._num_kept:
                self.kept[finding.reason].append(finding)
            fields = {"where": finding.where, "severity": finding.severity}
            fields |= {"reason": finding.reason, "trouble": finding.trouble}
            self._file.write(json.dumps(fields, ensure_ascii=False) + "\n")


def short_hash(text: str | bytes) -> int:
    """Returns 63 bits that equal texts share; never 0, which stands for nothing."""
    # File names may hold bytes that are no UTF-8, as halves of surrogate pairs.
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little") >> 1 or 1
