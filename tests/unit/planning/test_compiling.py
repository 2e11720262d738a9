"""Progress while compiling, and what a compiler says when memory is too small."""

import io
import signal
import time

import pytest

from metamorph_jax.planning.compiling import bytes_it_needed, interruptible, ticking


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 20.10G of 15.75G hbm.", 20.1),
        (
            "memory for HLO temporaries (512.00G) exceeds available HBM (95.74G)",
            512,
        ),
        ("Used 1.50T of 15.75G hbm", 1536),
    ],
)
def test_memory_that_does_not_fit_is_read_from_the_message(message, gib):
    assert bytes_it_needed(message) == pytest.approx(gib * 2**30)


def test_another_failure_is_not_taken_for_it():
    assert bytes_it_needed("INTERNAL: something else") is None


def test_a_long_compilation_says_how_long_it_has_taken():
    stream = io.StringIO()
    with ticking("compiling vpit for v5p:4x4x4", stream, interval_secs=0.02):
        time.sleep(0.1)
    lines = stream.getvalue().splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("compiling vpit for v5p:4x4x4 ... 0 s") for line in lines)


def test_ctrl_c_ends_a_compilation_at_once_and_is_put_back_after():
    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before
