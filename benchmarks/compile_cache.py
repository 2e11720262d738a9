"""How much of its compile time the second start of a run still takes.

    python benchmarks/compile_cache.py [--stage=vpit] [--trials=3]

The digits recipe is started in an empty cache folder and trains three steps of one stage; the same
command is started again in another run folder. Each trial begins with an empty cache. Both starts
must have the same losses, bit for bit. What jax reports as compiling, which includes reading kept
programs, is compared, and beside it the whole time of the process, which also imports, reads data
and traces.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import print_versions

ROOT = Path(__file__).resolve().parents[1]
GOAL = 0.20
NUM_STEPS = 3
STAGES = ("encoder", "adapter", "vpit")


def main() -> None:
    """Prints times of first and second starts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stage", choices=STAGES, default="vpit")
    parser.add_argument("--trials", type=int, default=3)
    flags = parser.parse_args()
    print_versions("jax", "jaxlib")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = [sys.executable, "-m", "metamorph_jax.data.digits", f"--out={folder}/data"]
        subprocess.run(data, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        pairs = [measure(folder, flags.stage, trial) for trial in range(flags.trials)]
    print(f"parity: {NUM_STEPS} losses of {flags.trials} pairs of starts equal bit for bit")
    first, second = (
        [statistics.median(column) for column in zip(*side, strict=True)]
        for side in zip(*pairs, strict=True)
    )
    print(f"{'stage ' + flags.stage:32s} {'first':>8s} {'second':>8s} {'ratio':>7s}")
    for row, one, other in zip(("compiling, s", "whole process, s"), first, second, strict=True):
        print(f"{row:32s} {one:8.2f} {other:8.2f} {other / one:7.1%}")
    ratio = second[0] / first[0]
    verdict = "reached" if ratio <= GOAL else "NOT reached"
    print(f"compile time of a second start {ratio:.1%}   goal <= {GOAL:.0%}: {verdict}")


def measure(folder: Path, stage: str, trial: int) -> tuple[tuple[float, float], ...]:
    """Returns (compile seconds, seconds) of a first start and of a second one."""
    cache = folder / f"cache-{trial}"
    starts = [start(folder, stage, cache, f"{trial}-{number}") for number in range(2)]
    assert starts[0][2] == starts[1][2], "the losses of both starts differ"
    return tuple((compile_secs, secs) for compile_secs, secs, _ in starts)


def start(folder: Path, stage: str, cache: Path, name: str) -> tuple[float, float, list[float]]:
    """Returns compile seconds, seconds in all, and the losses of a start."""
    others = [other for other in STAGES if other != stage]
    recipe = folder / "recipe.py"
    recipe.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom configs import digits\n\n\n"
        "def get_config(data):\n    config = digits.get_config(data)\n"
        f"    config.stages = [s for s in config.stages if s['name'] not in {others}]\n"
        "    return config\n"
    )
    command = [sys.executable, "-m", "metamorph_jax.train", f"--config={recipe}:{folder}/data"]
    command += [f"--workdir={folder}/run-{name}", f"--max_steps={NUM_STEPS}"]
    kept = {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    begin = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | kept, capture_output=True)
    secs = time.perf_counter() - begin
    lines = (folder / f"run-{name}" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    return steps[0]["compile_secs"], secs, [step["loss"] for step in steps]


if __name__ == "__main__":
    main()
