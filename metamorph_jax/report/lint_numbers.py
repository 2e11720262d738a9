"""What the lint page and the terminal both say about a stage's data, in numbers and words."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from metamorph_jax.data.lint.findings import SEVERITIES, Finding
from metamorph_jax.data.lint.survey import PlanSurvey, SourceSurvey, StageToSurvey, Survey
from metamorph_jax.typing import Shaped


@dataclasses.dataclass(frozen=True, kw_only=True)
class LintResult:
    """Everything that the page shows.

    Attributes:
        name: of the recipe or of the files.
        surveys: one per stage.
        counts: findings by reason.
        kept: the first findings of each reason.
        unchecked: reasons that were not looked for, and why.
        max_problem_fraction: that a source may have.
    """

    name: str
    surveys: Sequence[Survey]
    counts: Mapping[str, int]
    kept: Mapping[str, Sequence[Finding]]
    unchecked: Mapping[str, str]
    max_problem_fraction: float

    @property
    def worst_fraction(self) -> float:
        """Share of records in error, of the source that has most."""
        return max(survey.worst_fraction for survey in self.surveys)

    @property
    def is_good(self) -> bool:
        """Whether no source has more errors than it may have."""
        return self.worst_fraction <= self.max_problem_fraction

    @property
    def fine(self) -> list[str]:
        """What was looked for and not found."""
        return [
            reason
            for reason in SEVERITIES
            if not self.counts.get(reason) and reason not in self.unchecked
        ]


def kind_of(stage: StageToSurvey, source: SourceSurvey) -> str:
    """Returns what is made of a source's records."""
    return "caption" if stage.objective == "contrastive" else source.config.kind


def total(source: SourceSurvey, name: str) -> int:
    """Returns the sum of a column."""
    return int(source.rows[name].sum(dtype=np.int64))


def lengths_of(survey: Survey) -> list[tuple[SourceSurvey, dict[str, Shaped[np.ndarray, "n"]]]]:
    """Returns of each source the tokens and image tokens of its usable examples."""
    if survey.stage.writing is None:
        return []
    found = []
    for source in survey.sources:
        rows = source.rows[source.rows["length"] > 0]
        lengths = {"tokens": rows["length"]}
        if survey.stage.objective == "vpit":
            lengths["image tokens"] = rows["num_image_tokens"]
            lengths["learned text tokens"] = rows["num_supervised"]
        found.append((source, lengths))
    return found


def spread(values: Shaped[np.ndarray, "n"]) -> list[str]:
    """Returns smallest, median, 95th percentile, largest and sum of numbers."""
    if not len(values):
        return ["-"] * 5
    numbers = np.percentile(values, (0, 50, 95, 100), method="nearest").astype(np.int64)
    return [f"{number:,}" for number in (*numbers.tolist(), int(values.sum(dtype=np.int64)))]


def plan_lines(stage: StageToSurvey, plan: PlanSurvey) -> list[tuple[str, str]]:
    """Returns (what, how many) of the rows of a stage."""
    about = "about " * plan.is_estimate
    lines = [("examples shown", f"{about}{plan.num_examples:,}")]
    if plan.fill_fraction is not None:
        data = stage.data
        limits = f"{data.max_seq_len:,} tokens, {data.max_images} images"
        how = "packed" if data.packing else "one example each, no packing"
        lines.append(("rows", f"{about}{plan.num_rows:,} of at most {limits} ({how})"))
        lines.append(("of their tokens used", f"{plan.fill_fraction:.1%}"))
    if plan.image_fill_fraction is not None:
        lines.append(("of their image places used", f"{plan.image_fill_fraction:.1%}"))
    if plan.steps_per_epoch is not None:
        lines.append(
            ("steps", f"{about}{plan.steps_per_epoch:,.1f} of {stage.global_batch_size:,} rows")
        )
    if plan.total_epochs is not None:
        steps = f"{stage.total_steps:,} steps"
        lines.append(("the whole stage", f"{steps}, {about}{plan.total_epochs:,.2f} epochs"))
    return lines
