"""Benchmarks run, and what they assert beside their ratios holds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(name, *options):
    """Returns what a benchmark prints."""
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)}
    command = [sys.executable, str(BENCHMARKS / name), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def goals(output):
    """Returns the lines with a goal."""
    return [line for line in output.splitlines() if "goal" in line]


def test_decode_benchmark():
    output = run("decode.py", "--quick", "--rows=2")
    assert output.count("parity") == 4  # one prompt and two, running freely and along
    assert len(goals(output)) == 2


def test_quick_train_step_benchmark():
    output = run("train_step.py", "--quick", "--threads=1")
    assert output.count("parity  loss of step") == 4
    assert "calibrated" in output and len(goals(output)) == 1


def test_quick_step_settings_benchmark():
    output = run("step_settings.py", "--quick")
    assert output.count("parity") == 1 and output.count("s of CPU") == 7


def test_quick_cross_entropy_benchmark():
    output = run("cross_entropy.py", "--quick")
    assert output.count("parity") == 2
    # Memory does not depend on time, so it must reach its goal here, too.
    memory, time, fourth = goals(output)
    assert memory.startswith("temporaries") and memory.endswith(": reached")
    assert time.startswith("whole step") and fourth.startswith("every fourth token")


def test_quick_compile_time_benchmark():
    output = run("compile_time.py", "--quick")
    assert output.count("parity  loss of step") == 3 and len(goals(output)) == 1


@pytest.mark.slow
def test_compile_cache_benchmark():
    output = run("compile_cache.py", "--stage=adapter", "--trials=1")
    assert "parity: 3 losses of 1 pairs of starts equal bit for bit" in output
    assert output.endswith(": reached\n")


def test_visualizer_benchmarks():
    output = run("visualizer.py", "--repeats=1", "--steps=1")
    assert "parity  2 losses" in output
    output = run("gpu/visualizer.py", "--size=tiny", "--batch_size=2", "--steps=1", "--no_compile")
    assert "parity" in output
    assert "DPM++, 20 steps" in output


def test_quick_data_benchmark():
    output = run("data.py", "--quick")
    lines = output.splitlines()
    for start in ("fill, mix, 64", "fill, shapes", "step, packed against", "images, road", "text,"):
        assert any(line.startswith(start) and "goal" in line for line in lines), output
    # Fill does not depend on time, so it must reach its goals here, too.
    assert all(line.endswith(": reached") for line in lines if line.startswith("fill"))
    assert sum(line.startswith("parity") for line in lines) == 4  # two models, two losses


@pytest.mark.parametrize(
    "command,parity",
    [
        (["attention.py"], "leak"),
        (["decode_8b.py"], "parity: ids as without a cache"),
        (["train_8b.py", "--steps=1"], "parity: |loss packed, ours - padded, torch|"),
        (["train_8b.py", "--steps=1", "--stage=adapter", "--without_torch"], "ours: step, s"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_benchmarks_for_accelerators_start_on_a_cpu(command, parity, tmp_path):
    name, *options = command
    output = run(f"gpu/{name}", "--quick", f"--json={tmp_path / 'out.json'}", *options)
    results = json.loads((tmp_path / "out.json").read_text())
    assert parity in results and parity in output
    # A CPU says nothing about goals, and must not claim to.
    goals = [value for name, value in results.items() if name.startswith("goal")]
    assert goals and not any("reached" in value for value in goals)


def test_recipe_of_the_accelerator_benchmarks_takes_overrides_and_refuses_mistakes():
    command = [sys.executable, str(BENCHMARKS / "gpu" / "decode_8b.py"), "--quick"]
    command += ["--config.model.llm.num_layer=3"]
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode != 0 and "num_layers" in done.stderr
