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


def median_turns(
    functions: dict[str, Callable[[], object]], repeats: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns median seconds by the clock, and of CPU, of the same calls; they take turns."""
    clock, cpu = ({name: [] for name in functions} for _ in range(2))
    for _ in range(repeats):
        for name, function in functions.items():
            start, start_of_cpu = time.perf_counter(), time.process_time()
            function()
            clock[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - start_of_cpu)
    return tuple(
        {name: statistics.median(values) for name, values in times.items()}
        for times in (clock, cpu)
    )


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
