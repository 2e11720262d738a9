"""Linting a folder with planted faults: each is named with file and line, and nothing else is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dirty_data import SCRIPT, make_data
from tests.e2e.world import ROOT
from tests.unit.report.page_reader import PageReader


def lint(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "metamorph_jax.lint", f"--out={folder}/out", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def found(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "out" / "findings.jsonl").read_text("utf-8").splitlines()
    return [(fields["where"], fields["reason"]) for fields in map(json.loads, lines)]


@pytest.fixture(scope="module")
def dirty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dirty")
    planted = make_data(folder, is_dirty=True)
    return folder, planted, lint(folder, f"--config={folder}/recipe.py:{folder}")


def test_every_planted_fault_is_named_and_nothing_else(dirty):
    folder, planted, done = dirty
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert len(planted) > 20
    assert sorted(found(folder)) == sorted(planted)
    printed = [line for line in done.stdout.splitlines() if line.startswith(str(folder))]
    assert {line.split(": ")[0] for line in printed if ".jsonl:" in line} == {
        where for where, _ in planted
    }


def test_the_terminal_is_not_driven_by_the_data(dirty):
    *_, done = dirty
    assert "\x1b" not in done.stdout and "\x07" not in done.stdout


def test_the_page_names_every_fault_and_keeps_hostile_text_inert(dirty):
    folder, planted, _ = dirty
    page = (folder / "out" / "lint.html").read_text("utf-8")
    reader = PageReader(page)
    assert reader.is_self_contained
    assert not {"script", "iframe"} & set(reader.tags)
    assert SCRIPT not in page and "<img src=x" not in page
    for where, reason in planted:
        assert where in reader.text
        assert reason in reader.text
    assert "visual targets" in reader.text
    assert 'class="learned"' in page and 'class="slot target"' in page


def test_clean_data_is_said_to_be_fine(tmp_path):
    assert make_data(tmp_path, is_dirty=False) == set()
    done = lint(tmp_path, f"--config={tmp_path}/recipe.py:{tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert found(tmp_path) == []
    assert "verdict  good" in done.stdout
    assert "fine     malformed_record, wrong_conversation" in done.stdout
    assert "epochs" in done.stdout


def test_files_are_linted_without_a_recipe(dirty):
    folder, planted, _ = dirty
    done = lint(folder, f"{folder}/talk.jsonl", f"--image_root={folder}/images")
    assert done.returncode == 1, done.stderr
    no_limits = {(w, r) for w, r in planted if "talk" in w and r != "over_long"}
    missed = no_limits - set(found(folder))
    assert [reason for _, reason in missed] == ["nothing_to_learn"]  # the one that is too long
    assert set(found(folder)) <= no_limits
    assert "unknown  over_long" in done.stdout
