import json

import pytest

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.image_files import content_hash
from metamorph_jax.data.quarantine import Finding, Quarantine
from metamorph_jax.errors import UserError


def finding(line, reason="unreadable_media", source=0):
    where = f"data.jsonl:{line}"
    error = BadSample(reason, f"{where}: image 'a.png' cannot be decoded", content_hash(b"x"))
    return Finding(source, where, error.reason, str(error), error.sha256)


def make(fraction, file=None, sizes=(1000, 10)):
    return Quarantine(["data.jsonl", "small.jsonl"], sizes, fraction, file)


def test_findings_are_written_once(tmp_path):
    file = tmp_path / "run" / "quarantine.jsonl"
    quarantine = make(0.01, file)
    quarantine.add([finding(3), finding(5)])
    quarantine.add([finding(3)])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["where"] for line in lines] == ["data.jsonl:3", "data.jsonl:5"]
    assert lines[0]["reason"] == "unreadable_media"
    assert lines[0]["sha256"] == content_hash(b"x")


def test_a_resumed_run_goes_on_counting(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    make(0.002, file).add([finding(1), finding(2)])
    resumed = make(0.002, file)
    assert len(resumed) == 2
    resumed.add([finding(1), finding(2)])
    with pytest.raises(UserError, match=r"3 of the 1,000 records of data\.jsonl are bad"):
        resumed.add([finding(9)])
    assert len(file.read_text().splitlines()) == 3


def test_the_budget_is_a_fraction_of_the_source():
    quarantine = make(0.01)
    quarantine.add(finding(line) for line in range(10))
    with pytest.raises(UserError) as caught:
        quarantine.add([finding(10)])
    text = str(caught.value)
    assert "11 unreadable_media" in text and "data.jsonl:0: image" in text
    assert "max_bad_fraction=0.01" in text


def test_sources_have_budgets_of_their_own():
    quarantine = make(0.01)
    quarantine.add(finding(line) for line in range(10))
    with pytest.raises(UserError, match=r"1 of the 10 records of small\.jsonl"):
        quarantine.add([finding(1, source=1)])


def test_a_zero_budget_tells_the_whole_story_of_the_first():
    with pytest.raises(UserError) as caught:
        make(0.0).add([finding(7)])
    assert str(caught.value).startswith("data.jsonl:7: image 'a.png' cannot be decoded")


def test_harmless_findings_are_listed_but_not_counted():
    quarantine = make(0.0)
    quarantine.add([finding(1, "over_long"), finding(2, "nothing_to_learn")])
    assert len(quarantine.findings) == 2


def test_the_budget_holds_at_the_next_start_too(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    with pytest.raises(UserError):
        make(0.001, file).add([finding(1), finding(2)])
    with pytest.raises(UserError, match="2 of the 1,000 records"):
        make(0.001, file).begin([], lambda wheres: wheres)


def test_repaired_media_are_forgotten_at_the_next_start(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    with pytest.raises(UserError):
        make(0.001, file).add([finding(1), finding(2)])
    resumed = make(0.001, file)
    resumed.begin([], lambda wheres: wheres - {"data.jsonl:1"})
    assert [found.where for found in resumed.findings] == ["data.jsonl:2"]
    assert len(make(0.001, file)) == 1


def test_findings_of_other_data_are_not_counted(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    Quarantine(["a", "b"], (10, 10), 1.0, file, "old").add([finding(1), finding(2, source=1)])
    assert len(Quarantine(["a"], (10,), 1.0, file, "new")) == 0
    assert len(file.read_text().splitlines()) == 2


def test_a_line_that_was_cut_off_does_no_harm(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    make(1.0, file).add([finding(1), finding(2)])
    file.write_bytes(file.read_bytes()[:-30])
    resumed = make(1.0, file)
    assert len(resumed) == 1
    resumed.add([finding(3)])
    assert [found.where for found in make(1.0, file).findings] == ["data.jsonl:1", "data.jsonl:3"]
