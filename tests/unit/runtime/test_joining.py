"""Leaving a run of several processes: at once, with a message, whatever ends the process."""

import os
import signal
import subprocess
import sys
import time

import pytest

from metamorph_jax.runtime.joining import is_lost

PLACE = {
    "JAX_COORDINATOR_ADDRESS": "localhost:1",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
    "JAX_PLATFORMS": "cpu",
}
WITNESSED = """
import os, sys
from metamorph_jax.errors import UserError
from metamorph_jax.runtime import joining
from metamorph_jax.runtime.environment import find_place
joining._start_witness(find_place(os.environ))
print("ready", flush=True)
"""


def run(code, **variables):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | PLACE | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_whoever_is_ended_has_a_witness():
    done = run(WITNESSED + "os.abort()")
    assert done.returncode == -signal.SIGABRT
    assert "process 1 of 2 (plain variables, localhost:1)" in done.stderr
    assert "was ended" in done.stderr
    assert "the same command goes on from the newest checkpoint" in done.stderr


def test_whoever_leaves_in_order_needs_none():
    done = run(WITNESSED + "joining._say_goodbye()")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        ("UserError('no such file')", 2, "error: no such file\n"),
        ("ValueError('Gloo all-reduce failed: closed')", 1, "cannot be reached: Gloo"),
        ("SystemExit(75)", 75, ""),
        ("KeyError('a bug')", 1, "KeyError"),
    ],
)
def test_an_error_is_told_and_the_process_leaves_at_once(error, code, told):
    done = run(WITNESSED + f"joining.leave({error})\nprint('not reached')")
    assert done.returncode == code
    assert told in done.stderr and "was ended" not in done.stderr
    assert done.stdout == "ready\n"


def test_who_waits_too_long_is_told_what_to_check():
    code = """
import os
from metamorph_jax.runtime import joining
joining._JOIN_SECS, joining._REMIND_SECS = 2, 0.5
with joining.joined():
    print("not reached")
"""
    begin = time.monotonic()
    done = run(code, JAX_COORDINATOR_ADDRESS="localhost:9")
    assert time.monotonic() - begin < 30
    assert done.returncode == 1
    assert "waiting for process 0 and all others" in done.stderr
    assert "localhost:9 (which does not answer from here" in done.stderr
    assert "port is open" in done.stderr


def test_signs_of_a_lost_process():
    assert is_lost(ValueError("UNKNOWN: Gloo AllGather failed"))
    assert not is_lost(ValueError("shapes differ"))
