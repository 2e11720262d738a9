"""Seconds per phase: only what finished counts, and resumed phases add up."""

import pytest

from metamorph_jax.metrics.phases import PHASES_FILE, phase, read_phases, record_phase


def test_finished_phases_are_added_up_in_order(tmp_path):
    record_phase(tmp_path / "run", "train", 2.0)
    record_phase(tmp_path / "run", "paint", 1.5)
    record_phase(tmp_path / "run", "train", 3.0)
    assert list(read_phases(tmp_path / "run").items()) == [("train", 5.0), ("paint", 1.5)]


def test_body_is_timed(tmp_path):
    with phase(tmp_path, "report"):
        pass
    assert 0 <= read_phases(tmp_path)["report"] < 5


def test_failed_phase_leaves_no_line(tmp_path):
    with pytest.raises(KeyError), phase(tmp_path, "report"):
        raise KeyError("x")
    assert read_phases(tmp_path) == {}


def test_half_written_line_is_skipped(tmp_path):
    record_phase(tmp_path, "train", 2.0)
    with open(tmp_path / PHASES_FILE, "a") as file:
        file.write('{"phase": "rep')
    assert read_phases(tmp_path) == {"train": 2.0}
    record_phase(tmp_path, "paint", 1.0)
    assert read_phases(tmp_path) == {"train": 2.0, "paint": 1.0}
