"""The page of `python -m metamorph_jax.lint`: counts, histograms, samples and findings of data.

Nothing that stands in a user's file can become markup: every text goes through `page.text`, and
control characters are shown as pictures of themselves. What is said about the data was worked out
in `data/lint/`.
"""

from collections.abc import Mapping

import numpy as np

from metamorph_jax.data.lint.findings import MEANINGS, SEVERITIES
from metamorph_jax.data.lint.survey import SourceSurvey, Survey
from metamorph_jax.errors import visible
from metamorph_jax.report import page
from metamorph_jax.report.lint_numbers import (
    LintResult,
    kind_of,
    lengths_of,
    plan_lines,
    spread,
    total,
)
from metamorph_jax.report.lint_plots import Lengths, histograms
from metamorph_jax.report.lint_samples import SAMPLE_STYLE, sample_blocks
from metamorph_jax.report.page import Html, element, join
from metamorph_jax.typing import Shaped

_NUM_SHOWN = 20  # findings of a reason
_STYLE = """
body { max-width: 68rem; }
.checks td:first-child { font: .86em/1.7 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
table a { color: inherit; }
.checks .none { color: var(--good); }
section > img { display: block; max-width: 100%; height: auto; margin: 1rem 0; }
.severity { font-size: .78rem; font-weight: 600; padding: .05rem .45rem; border-radius: .6rem;
  vertical-align: .1em; }
.severity.error { background: #fbe4e1; color: #b42318; }
.severity.warning { background: #fcf0d3; color: #8a5a00; }
.severity.info { background: #e4eef5; color: #205a80; }
ol.findings { list-style: none; margin: .4rem 0 1.2rem; padding: 0; font-size: .9rem; }
ol.findings li { padding: .32rem 0 .32rem 1rem; text-indent: -1rem;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
ol.findings code { font: 600 .86em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  margin-right: .5rem; }
"""


def lint_page(result: LintResult) -> str:
    """Returns the page, complete in itself."""
    sections = [page.section("Summary", *_summary(result))]
    sections.append(page.section("Findings", *_findings(result)))
    for survey in result.surveys:
        title = f"Stage {survey.stage.name}" if len(result.surveys) > 1 else "Data"
        sections.append(page.section(title, *_stage(survey)))
    num_records = sum(survey.num_records for survey in result.surveys)
    lead = f"{num_records:,} records, looked at before training."
    return page.render(f"Data of {visible(result.name)}", lead, sections, _STYLE + SAMPLE_STYLE)


def _badge(severity: str) -> Html:
    return element("span", severity, class_=f"severity {severity}")


def _summary(result: LintResult) -> list[object]:
    """Returns the verdict, and every thing that was looked for."""
    if result.is_good:
        saying = "ready to train on"
    else:
        saying = "not ready to train on"
    allowed = f"{result.worst_fraction:.2%} of a source's records are in error, "
    allowed += f"{result.max_problem_fraction:.2%} may be"
    checks = [_check(result, reason) for reason in SEVERITIES]
    return [
        page.paragraph(join([page.verdict(result.is_good), f" · {saying} ({allowed})"])),
        page.table(("looked for", "what it is", "found", ""), checks, "checks"),
    ]


def _check(result: LintResult, reason: str) -> tuple[object, ...]:
    """Returns the row of one thing that was looked for."""
    count = result.counts.get(reason, 0)
    name: object = visible(reason)
    if reason in result.unchecked:
        number: object = element("span", f"not looked for: {result.unchecked[reason]}")
    elif count:
        name = element("a", name, href=f"#{reason}")
        number = element("b", f"{count:,}")
    else:
        number = element("span", "none", class_="none")
    badge = _badge(SEVERITIES[reason]) if count else ""
    return name, MEANINGS[reason], number, badge


def _ordered(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return [(reason, counts[reason]) for reason in SEVERITIES if counts.get(reason)]


def _stage(survey: Survey) -> list[object]:
    blocks: list[object] = [_source_table(survey)]
    tokens = _token_table(survey)
    if tokens:
        blocks.append(tokens)
    blocks.append(_plots(survey))
    if survey.plan is not None:
        lines = plan_lines(survey.stage, survey.plan)
        blocks += [element("h3", "The first epoch"), page.table((), lines)]
    return [*blocks, element("h3", "Samples"), *sample_blocks(survey)]


def _source_table(survey: Survey) -> Html:
    header = ("source", "kind", "weight", "records", "looked at", "usable", "answers")
    header += ("images", "in answers", "videos")
    rows = [
        (
            visible(source.config.path),
            kind_of(survey.stage, source),
            f"{source.config.weight:g}",
            f"{source.size:,}",
            f"{len(source.rows):,}",
            f"{np.count_nonzero(source.rows['is_readable']):,}",
            *(
                f"{total(source, name):,}"
                for name in ("num_answers", "num_images", "num_answer_images", "num_videos")
            ),
        )
        for source in survey.sources
    ]
    return page.table(header, rows)


def _token_table(survey: Survey) -> Html | None:
    rows = []
    for source, lengths in lengths_of(survey):
        path: object = visible(source.config.path)
        for name, values in lengths.items():
            rows.append((path, name, *spread(values)))
            path = ""
    header = ("source", "per example", "min", "median", "95 %", "max", "sum")
    return page.table(header, rows) if rows else None


def _plots(survey: Survey) -> Html:
    found = lengths_of(survey)
    limits = {"tokens": survey.stage.data.max_seq_len}
    panels = [
        (
            f"{name} per example",
            [_named(source, of[name]) for source, of in found],
            limits.get(name),
        )
        for name in ("tokens", "image tokens")
        if found and name in found[0][1]
    ]
    if not panels:
        columns = [(source, source.rows["num_images"]) for source in survey.sources]
        panels = [("images per record", [_named(*column) for column in columns], None)]
    description = ", ".join(title for title, *_ in panels)
    return page.image(histograms(panels), description)


def _named(source: SourceSurvey, values: Shaped[np.ndarray, "n"]) -> Lengths:
    return Lengths(visible(source.config.path).rpartition("/")[2][-40:], values)


def _findings(result: LintResult) -> list[object]:
    if not any(result.counts.values()):
        return [page.paragraph("None.")]
    blocks: list[object] = [
        page.paragraph("All of them, one JSON object a line, are in findings.jsonl beside this.")
    ]
    for reason, count in _ordered(result.counts):
        badge = _badge(SEVERITIES[reason])
        heading = join([visible(reason), f" · {count:,} ", badge])
        blocks.append(element("h3", heading, id=reason))
        shown = result.kept[reason][:_NUM_SHOWN]
        items = [
            element("li", join([element("code", visible(f.where)), visible(f.trouble)]))
            for f in shown
        ]
        if count > len(shown):
            items.append(element("li", f"... and {count - len(shown):,} more"))
        blocks.append(element("ol", join(items), class_="findings"))
    return blocks
