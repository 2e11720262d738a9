"""The lint page: numbers, samples and findings; nothing in the data becomes markup."""

import base64

import numpy as np
import pytest

from metamorph_jax.config.schema_run import DataConfig, SourceConfig
from metamorph_jax.data.lint.examine import ROW
from metamorph_jax.data.lint.findings import SEVERITIES, Finding
from metamorph_jax.data.lint.survey import PlanSurvey, Sample, SourceSurvey, StageToSurvey, Survey
from metamorph_jax.data.spans import ImageSpan, TextSpan
from metamorph_jax.report.lint_numbers import LintResult, plan_lines, spread
from metamorph_jax.report.lint_page import lint_page
from metamorph_jax.report.lint_plots import Lengths, histograms
from tests.unit.report.page_reader import PageReader, decode_image

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
STAGE = StageToSurvey(
    name=EVIL,
    data=DataConfig(sources=(SourceConfig(path=EVIL),)),
    writing=None,
    image_size=8,
    global_batch_size=4,
    total_steps=10,
)


def evil_result(**changes) -> LintResult:
    rows = np.zeros(3, ROW)
    rows["is_readable"] = [True, True, False]
    rows["num_images"] = [1, 2, 0]
    spans = [
        TextSpan(EVIL, False, False),
        ImageSpan(EVIL, False, 4, 0),
        TextSpan(EVIL + "\x07", True, False),
        ImageSpan("b.png", True, 4, 1),
        TextSpan("<|eot_id|>", True, True),
    ]
    pixels = [np.full((8, 8, 3), value, np.uint8) for value in (10, 200)]
    sample = Sample(EVIL, "conversation", 12, spans, pixels)
    sources = (SourceSurvey(STAGE.data.sources[0], 3, rows),)
    kept = {reason: [Finding(f"{EVIL}:1", reason, EVIL)] for reason in SEVERITIES}
    fields = {
        "name": EVIL,
        "surveys": [Survey(STAGE, sources, None, (sample,))],
        "counts": dict.fromkeys(SEVERITIES, 3),
        "kept": kept,
        "unchecked": {},
        "max_problem_fraction": 0.0,
    }
    return LintResult(**(fields | changes))


def test_hostile_data_stays_text_everywhere():
    page = lint_page(evil_result())
    reader = PageReader(page)  # raises if anything does not nest
    assert reader.is_self_contained
    assert not {"script", "iframe", "object"} & set(reader.tags)
    assert "<script" not in page and "<img src=x" not in page
    assert reader.text.count(EVIL) > 2 * len(SEVERITIES)  # read back as it was


def test_samples_colour_what_is_learned_and_frame_targets():
    page = lint_page(evil_result())
    images = [uri for uri in PageReader(page).images if uri.startswith("data:image/png")]
    assert [int(np.asarray(decode_image(uri))[0, 0, 0]) for uri in images] == [10, 200]
    assert page.count('class="slot target"') == 2  # the key to the colours, and b.png
    assert '<span class="learned control">&lt;|eot_id|&gt;</span>' in page
    assert "4 visual targets" in page and "4 visual tokens" in page
    assert "\x07" not in page and "\u2407" in page


def test_findings_are_counted_and_cut():
    reader = PageReader(lint_page(evil_result()))
    assert reader.text.count("... and 2 more") == len(SEVERITIES)
    assert "no" in reader.text and "33.33%" in reader.text


def test_what_is_fine_and_what_was_not_looked_for_is_said():
    unchecked = {"over_long": "no tokenizer was named"}
    result = evil_result(counts={"tag_mismatch": 2}, unchecked=unchecked, max_problem_fraction=0.5)
    text = PageReader(lint_page(result)).text
    assert result.is_good
    assert text.count("none") == len(SEVERITIES) - 2
    assert "not looked for: no tokenizer was named" in text
    assert result.fine == [r for r in SEVERITIES if r not in ("tag_mismatch", "over_long")]


def test_a_page_without_anything_good():
    result = evil_result()
    (survey,) = result.surveys
    empty = Survey(survey.stage, survey.sources, None, ())
    assert "nothing to show" in lint_page(evil_result(surveys=[empty]))


def test_numbers():
    assert spread(np.arange(101)) == ["0", "50", "95", "100", "5,050"]
    assert spread(np.zeros(0, int)) == ["-"] * 5
    plan = PlanSurvey(10, 5, 0.5, 0.25, 1.25, 8.0, is_estimate=True)
    lines = dict(plan_lines(STAGE, plan))
    assert lines["steps"] == "about 1.2 of 4 rows"
    assert lines["of their tokens used"] == "50.0%"
    assert lines["of their image places used"] == "25.0%"
    assert lines["the whole stage"] == "10 steps, about 8.00 epochs"


@pytest.mark.parametrize("values", [[], [0], [3, 3, 7], list(range(500)), [1, 100_000]])
def test_histograms_of_anything(values):
    sources = [Lengths("$x^2$ <b>", np.array(values, int)), Lengths("b", np.array([2, 3]))]
    uri = histograms([("tokens", sources, 100), ("images", sources[:1], None)])
    svg = base64.b64decode(uri.split(",", 1)[1]).decode()
    assert svg.startswith("<?xml") and "tokens" in svg
