"""Benchmarks run, and what they assert beside their ratios holds."""

import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(name, *options):
    """Returns what a benchmark prints."""
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)}
    command = [sys.executable, str(BENCHMARKS / name), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_decode_benchmark():
    assert run("decode.py", "--repeats=1").count("parity") == 2


def test_visualizer_benchmarks():
    output = run("visualizer.py", "--repeats=1", "--steps=1")
    assert "parity  1 losses" in output
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
