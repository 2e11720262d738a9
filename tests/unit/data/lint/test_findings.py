"""Findings: where they point, what is counted, what is kept and what is written down."""

import json

from metamorph_jax.data.faults import REASONS, BadSample
from metamorph_jax.data.lint.findings import (
    MEANINGS,
    SEVERITIES,
    Finding,
    FindingLog,
    short_hash,
    unchecked,
)


def test_every_reason_of_quarantine_has_a_severity_and_a_meaning():
    assert set(REASONS) <= set(SEVERITIES)
    assert SEVERITIES.keys() == MEANINGS.keys()
    assert all(SEVERITIES[reason] == "error" for reason in REASONS if reason != "over_long")


def test_a_bad_sample_points_at_its_own_line():
    error = BadSample("malformed_record", "a b: c.json:7: malformed JSON, oh: no")
    finding = Finding.of("a b: c.json:5", error)  # the record begins on 5, the fault is on 7
    assert finding == Finding("a b: c.json:7", "malformed_record", "malformed JSON, oh: no")
    assert str(finding) == "a b: c.json:7: error: malformed JSON, oh: no [malformed_record]"
    elsewhere = BadSample("missing_media", "no FILE:LINE in front")
    assert Finding.of("f:1", elsewhere).where == "f:1"


def test_the_log_writes_all_and_keeps_the_first(tmp_path):
    file = tmp_path / "new" / "findings.jsonl"
    findings = [Finding(f"f:{line}", "over_long", "ü long") for line in range(5)]
    with FindingLog(file, num_kept=2) as log:
        log.add(findings)
        log.add(findings[:3])  # another stage reads the same file
        log.add([Finding("f:1", "tiny_image", "1x1")])
    assert log.counts == {"over_long": 5, "tiny_image": 1}
    assert log.kept["over_long"] == findings[:2]
    lines = file.read_text("utf-8").splitlines()
    assert len(lines) == 6
    assert json.loads(lines[0]) == {
        "where": "f:0",
        "severity": "warning",
        "reason": "over_long",
        "trouble": "ü long",
    }


def test_file_names_that_are_no_unicode(tmp_path):
    where = b"\xff.jsonl:1".decode("utf-8", "surrogateescape")
    with FindingLog(tmp_path / "findings.jsonl") as log:
        log.add([Finding(where, "tiny_image", "1x1")] * 2)
    (line,) = (tmp_path / "findings.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["where"] == where
    assert short_hash(where) != short_hash("?.jsonl:1")


def test_what_was_not_looked_for_is_said():
    assert unchecked("decode", has_tokenizer=True, num_workers=1) == {}
    assert list(unchecked("decode", False, 0)) == ["over_long", "killed_worker"]
    assert "duplicate_image" in unchecked("headers", True, 0)
    assert {"missing_media", "tiny_image"} <= unchecked("none", True, 1).keys()
