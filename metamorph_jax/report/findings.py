"""What one part of the report adds to the whole."""

import dataclasses
from typing import Any

from metamorph_jax.report.page import Html


@dataclasses.dataclass(frozen=True)
class Findings:
    """What was found out about a model.

    Attributes:
        summary: entries of summary.json.
        sections: of the page, in order.
    """

    summary: dict[str, Any]
    sections: list[tuple[str, Html]]
