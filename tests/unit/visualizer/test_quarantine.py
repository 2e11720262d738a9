"""Bad pictures are listed once and counted against a budget."""

import json

import pytest

from metamorph_jax.errors import UserError
from metamorph_jax.visualizer.quarantine import Quarantine


def complaint(name):
    return {"picture": name, "message": f"{name} is broken"}


def test_budget_counts_pictures_of_all_processes_of_a_run(tmp_path):
    first = Quarantine(tmp_path, 100, 0.02)
    first.add([complaint("a"), complaint("a")])
    second = Quarantine(tmp_path, 100, 0.02)
    second.add([complaint("a"), complaint("b")])
    lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["picture"] for line in lines] == ["a", "b"]
    with pytest.raises(UserError) as error:
        second.add([complaint("c")])
    assert "3 of 100 pictures cannot be used" in str(error.value)
    assert "allows (2)" in str(error.value)
    assert "a is broken" in str(error.value)


def test_only_one_process_writes_but_all_count(tmp_path):
    with pytest.raises(UserError, match="1 of 10"):
        Quarantine(tmp_path, 10, 0.0).add([complaint("a")], is_writer=False)
    assert not (tmp_path / "quarantine.jsonl").exists()
