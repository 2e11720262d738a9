"""What all benchmarks share: taking turns, and saying what ran where."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version


def median_seconds(
    functions: dict[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Returns the median time of each function; they take turns, so that load hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = clock()
            function()
            times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def print_versions(*packages: str) -> None:
    """Prints the versions of packages and of Python, and the number of cores."""
    versions = " ".join(f"{name} {version(name)}" for name in packages)
    print(f"{versions} python {platform.python_version()}, {os.cpu_count()} cores")


def print_goal(name: str, value: float, goal: float, form: str = "{:.2f}x") -> None:
    """Prints a measured value beside the least it should be."""
    reached = "reached" if value >= goal else "NOT reached"
    print(f"{name:58s} {form.format(value):>9s}   goal >= {form.format(goal)}: {reached}")


def print_at_most(name: str, value: float, goal: float, form: str = "{:.2f}x") -> None:
    """Prints a measured value beside the most it should be."""
    reached = "reached" if value <= goal else "NOT reached"
    print(f"{name:58s} {form.format(value):>9s}   goal <= {form.format(goal)}: {reached}")
