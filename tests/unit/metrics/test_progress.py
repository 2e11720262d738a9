"""The progress line, on a terminal and in a log file."""

import io

import pytest

from metamorph_jax.metrics.progress import Progress, format_secs


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_log_file_gets_a_line_per_interval_and_the_last():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(7, stream=stream, log_interval=3, label="vpit", clock=clock)
    for step in range(1, 8):
        progress.update(step, {"loss": 1 / step})
        clock.now += 0.5
    progress.close()
    lines = stream.getvalue().splitlines()
    assert [line.split(" · ")[0] for line in lines] == [
        "vpit step 3/7",
        "vpit step 6/7",
        "vpit step 7/7",
    ]
    assert lines[0] == "vpit step 3/7 · loss 0.3333 · 2 steps/s · 2 s left"
    assert "\r" not in stream.getvalue()


def test_a_log_file_gets_lines_of_large_steps_and_of_a_new_total():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(100, "example", stream=stream, log_interval=30, clock=clock)
    for done in (16, 32, 48, 64):
        progress.update(done, total=64)
    lines = stream.getvalue().splitlines()
    assert [line.split(" · ")[0] for line in lines] == ["example 32/64", "example 64/64"]


def test_terminal_line_is_rewritten_and_ended():
    stream, clock = Terminal(), Clock()
    progress = Progress(100, stream=stream, clock=clock)
    for step in range(1, 101):
        progress.update(step)
        clock.now += 0.01
    progress.close()
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert 5 <= text.count("\r") <= 15  # a tenth of a second apart, not every step
    assert "step 100/100" in text.split("\r")[-1]


def test_first_step_counts_neither_for_rate_nor_time_left():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(10, stream=stream, log_interval=1, clock=clock)
    clock.now = 60.0  # compiling
    progress.update(1)
    clock.now = 61.0
    progress.update(2)
    first, second = stream.getvalue().splitlines()
    assert "left" not in first
    assert "1 steps/s · 8 s left" in second


@pytest.mark.parametrize("stream_type", [io.StringIO, Terminal])
def test_waiting_is_told_at_once(stream_type):
    stream = stream_type()
    progress = Progress(10, stream=stream, label="encoder", start=4)
    progress.waiting_for("compiling")
    assert "encoder step 4/10 · compiling ..." in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7.6, "8 s"), (59.7, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_format_secs(seconds, text):
    assert format_secs(seconds) == text
