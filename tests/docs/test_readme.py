"""README and docs say what is there: files, commands, flags and data formats."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from metamorph_jax.data.conversation import read_conversation
from metamorph_jax.data.sources import open_source

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(?:bash|json)\n(.*?)```", README, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
COMMANDS = [line for line in LINES if line.startswith("python -m ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_both_commands_are_on_the_first_screen():
    first_screen = README.splitlines()[:15]
    assert any(line.startswith("make demo") for line in first_screen)
    assert any(line.startswith("make test") for line in first_screen)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"setup", "demo", "test", "lint", "bench"} <= set(targets)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


@functools.cache
def known_flags(module, first):
    """Returns the flags in the help of a command, or of its subcommand if `first` is one."""
    command = [sys.executable, "-m", module, *([] if first.startswith("-") else [first]), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"--\w+", done.stdout))


@pytest.mark.parametrize("module", sorted({line.split()[2] for line in COMMANDS}))
def test_flags_of_the_commands_exist(module):
    for line in COMMANDS:
        if line.split()[2] == module:
            known = known_flags(module, line.split()[3])
            used = {flag for flag in re.findall(r"--\w+(?=[=.\s]|$)", line.split(" #")[0])}
            assert used <= known, line


def test_recipes_of_the_commands_exist():
    for recipe in re.findall(r"configs/\w+\.py", README):
        assert (ROOT / recipe).exists() or recipe == "configs/mine.py", recipe


def test_demo_script_runs_the_commands_of_the_readme():
    script = (ROOT / "launch" / "demo.sh").read_text()
    modules = re.findall(r"\$PYTHON -m ([\w.]+)", script)
    assert modules == [line.split()[2] for line in COMMANDS[: len(modules)]]


def test_data_example_is_read_as_it_says(tmp_path):
    lines = [line for line in LINES if line.startswith('{"image"')]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    records = open_source(tmp_path / "data.jsonl")
    assert len(lines) == len(records) == 2
    question, answer = (read_conversation(records[index]) for index in range(2))
    assert [len(turn.parts) for turn in question.turns] == [2, 1]
    assert answer.turns[1].parts[-1].media == "hat.png"
    assert all(json.loads(line)["conversations"] for line in lines)


def test_digits_recipe_is_short():
    assert len((ROOT / "configs" / "digits.py").read_text().splitlines()) < 80
