"""Pictures that cannot be used: listed, left out of their batches, and counted against a budget.

A bad picture never is replaced by another one. Its place in the batch stays empty (its error
counts nothing, and the mean is still taken over the whole batch), so that order never moves.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from metamorph_jax.errors import UserError
from metamorph_jax.metrics.jsonl import drop_partial_line, read_objects

QUARANTINE_FILE = "quarantine.jsonl"
_NUM_SHOWN = 3
Complaint = Mapping[str, str]  # "picture": its path, "message": what is wrong


class Quarantine:
    """The bad pictures of a run, those of its earlier processes included.

    Args:
        run: folder that holds `quarantine.jsonl`.
        num_pictures: in the training data.
        max_fraction: of them that may be bad.
    """

    def __init__(self, run: Path, num_pictures: int, max_fraction: float):
        self._file = run / QUARANTINE_FILE
        self._budget = int(max_fraction * num_pictures)
        self._num_pictures = num_pictures
        drop_partial_line(self._file)
        lines = (values for _, values in read_objects(self._file))
        self._known = {values["picture"]: values["message"] for values in lines}

    def add(self, complaints: Iterable[Complaint], is_writer: bool = True) -> None:
        """Writes down what is new; with several processes only one does, but all count.

        Raises:
            UserError: more pictures than the budget are bad.
        """
        for complaint in complaints:
            if complaint["picture"] in self._known:
                continue
            self._known[complaint["picture"]] = complaint["message"]
            if is_writer:
                with open(self._file, "a", encoding="utf-8") as file:
                    file.write(json.dumps(complaint) + "\n")
        if len(self._known) > self._budget:
            shown = "\n  - ".join(list(self._known.values())[:_NUM_SHOWN])
            raise UserError(
                f"{len(self._known)} of {self._num_pictures} pictures cannot be used, more than "
                f"config.data.max_bad_fraction allows ({self._budget}); what was trained is saved. "
                f"All are listed in {self._file}; repair them and delete that file, or allow more:"
                f"\n  - {shown}"
            )
