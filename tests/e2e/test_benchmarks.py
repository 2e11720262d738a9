"""The benchmark of the data road runs, and what it asserts beside its ratios holds."""

import os
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "data.py"


def test_quick_data_benchmark():
    environment = os.environ | {"PYTHONPATH": str(BENCHMARK.parents[1])}
    command = [sys.executable, str(BENCHMARK), "--quick"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for start in ("fill, mix, 64", "fill, shapes", "step, packed against", "images, road", "text,"):
        assert any(line.startswith(start) and "goal" in line for line in lines), done.stdout
    # Fill does not depend on time, so it must reach its goals here, too.
    assert all(line.endswith(": reached") for line in lines if line.startswith("fill"))
    assert sum(line.startswith("parity") for line in lines) == 4  # two models, two losses
