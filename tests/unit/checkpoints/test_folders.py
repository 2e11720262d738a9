import os
import subprocess
import sys

import pytest

from metamorph_jax.checkpoints import folders


def _make(directory, *names):
    for name in names:
        (directory / name).mkdir()
        (directory / name / "content").write_text(name)


def test_only_plain_numbers_are_final(tmp_path):
    _make(tmp_path, "00000005", "00000123", "100000000", "00000200.tmp-1", "00000300.damaged-1")
    _make(tmp_path, "7", "notes", "00000400.superseded-2")
    assert folders.final_steps(tmp_path) == [100_000_000, 123, 5]
    assert folders.set_aside_names(tmp_path) == ["00000300.damaged-1", "00000400.superseded-2"]
    assert folders.final_steps(tmp_path / "absent") == []


@pytest.mark.parametrize("step", [0, 5, 99_999_999, 100_000_000])
def test_names_and_steps_agree(tmp_path, step):
    folders.folder_of(tmp_path, step).mkdir()
    assert folders.final_steps(tmp_path) == [step]


def test_setting_aside_never_overwrites(tmp_path):
    for number in (1, 2, 3):
        _make(tmp_path, "00000005")
        target = folders.set_aside(tmp_path / "00000005", "damaged")
        assert target.name == f"00000005.damaged-{number}"
    assert folders.final_steps(tmp_path) == []


def test_publish_replaces_a_checkpoint_of_the_same_step(tmp_path):
    _make(tmp_path, "00000005", "00000005.tmp-1")
    folders.publish(tmp_path / "00000005.tmp-1", tmp_path / "00000005")
    assert os.listdir(tmp_path) == ["00000005"]
    assert (tmp_path / "00000005" / "content").read_text() == "00000005.tmp-1"


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive, own = os.getppid(), os.getpid()
    _make(tmp_path, *(f"00000005.tmp-{process}" for process in (dead.pid, alive, own)))
    _make(tmp_path, "00000004", "00000003.damaged-1")
    folders.remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [
        "00000003.damaged-1",
        "00000004",
        f"00000005.tmp-{alive}",
    ]
