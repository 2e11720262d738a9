"""Runs every benchmark of this folder that a CPU can run, one after the other.

    python benchmarks/all.py [--quick]

Each in a process of its own; the time of each and the total come last. Ends with an error if one
of them fails, which is when a parity that it asserts does not hold; a goal that is not reached is
printed and is no failure. `benchmarks/gpu/` is for accelerators, `convert_8b.py` needs 50 GB of
disk and is run by hand.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

# And how each is only shown to run.
BENCHMARKS = {
    "train_step.py": ["--quick"],
    "step_settings.py": ["--quick"],
    "decode.py": ["--quick"],
    "cross_entropy.py": ["--quick"],
    "compile_time.py": ["--quick"],
    "data.py": ["--quick"],
    "visualizer.py": ["--repeats=1", "--steps=1"],
    "compile_cache.py": ["--trials=1"],
}


def main() -> None:
    """Runs the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shows that they run")
    flags = parser.parse_args()
    lines, failed, total = [], [], 0.0
    for name, quick in BENCHMARKS.items():
        print(f"\n== {name}", flush=True)
        options = quick if flags.quick else []
        start = time.perf_counter()
        done = subprocess.run([sys.executable, str(Path(__file__).parent / name), *options])
        secs = time.perf_counter() - start
        total += secs
        lines.append(f"{name:20s} {secs:7.1f} s" + (" FAILED" if done.returncode else ""))
        failed += [name] if done.returncode else []
    print("\n" + "\n".join(lines) + f"\n{'in all':20s} {total:7.1f} s")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
