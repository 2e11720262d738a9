#!/usr/bin/env python3
"""Starts one command in N processes on this machine that find each other as those of a cluster do.

    launch/local.py 2 python -m metamorph_jax.train --config=configs/digits.py

Every line says which process it is of. Ctrl-C and SIGTERM are passed on once to all. The exit code
is that of the processes: 0, 75 if they were stopped and have saved, or the first other one
(128 + N for one that signal N ended).
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence

EXIT_STOPPED = 75
EXIT_NO_COMMAND = 127


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="launch/local.py", description=__doc__.splitlines()[0])
    parser.add_argument("--dry_run", action="store_true", help="print what would be started")
    parser.add_argument("--port", type=int, help="of process 0 (default: a free one)")
    parser.add_argument("num_processes", type=int)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    flags = parser.parse_args(argv)
    if flags.num_processes < 1 or not flags.command:
        parser.error("expected a number of processes and a command")
    port = flags.port or free_port()
    places = [place(index, flags.num_processes, port) for index in range(flags.num_processes)]
    if flags.dry_run:
        for variables in places:
            pairs = [f"{name}={value}" for name, value in variables.items()]
            print(shlex.join(["env", *pairs, *flags.command]))
        return 0
    return run(flags.command, places)


def free_port() -> int:
    """Returns a port that nobody uses now."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def place(index: int, count: int, port: int) -> dict[str, str]:
    """Returns the environment variables of one process."""
    return {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
    }


def run(command: Sequence[str], places: Sequence[dict[str, str]]) -> int:
    """Runs a command in each place until all have ended; returns the exit code."""
    processes: list[subprocess.Popen] = []

    def pass_on(number: int, frame: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    try:
        for variables in places:
            processes.append(start(command, variables))
    except OSError as error:
        print(f"launch/local.py: {command[0]}: {error.strerror}", file=sys.stderr)
        return EXIT_NO_COMMAND
    printers = [
        threading.Thread(target=show, args=(index, process))
        for index, process in enumerate(processes)
    ]
    for printer in printers:
        printer.start()
    codes = [process.wait() for process in processes]
    for printer in printers:
        printer.join()
    failed = [code for code in codes if code not in (0, EXIT_STOPPED)]
    code = failed[0] if failed else max(codes)
    return 128 - code if code < 0 else code  # of a process that a signal ended, as in shells


def start(command: Sequence[str], variables: dict[str, str]) -> subprocess.Popen:
    """Starts one process."""
    return subprocess.Popen(
        command,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that a Ctrl-C comes once, from here
    )


def show(index: int, process: subprocess.Popen) -> None:
    """Prints what a process prints, line by line."""
    for line in process.stdout:
        sys.stdout.write(f"[{index}] {line}")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
