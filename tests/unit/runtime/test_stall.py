"""A run that stands still says so once, with what it waits for, and goes on."""

import time

import pytest

from metamorph_jax.runtime.stall import StallWatch


@pytest.fixture
def log(tmp_path):
    with open(tmp_path / "log", "w") as file:
        yield file


def told(log, text, secs=10.0):
    """Waits until the log holds `text`; returns all of it."""
    deadline = time.monotonic() + secs
    while text not in (said := said_so_far(log)):
        assert time.monotonic() < deadline, said
        time.sleep(0.01)
    return said


def said_so_far(log):
    with open(log.name) as file:
        return file.read()


def test_a_step_that_does_not_end_is_told_once_with_the_sample_and_the_stacks(log):
    reading = ["data.jsonl:17"]
    with StallWatch(lambda: reading, least_secs=0.2, first_secs=30, stream=log) as watch:
        watch.begin(40)
        watch.done(41)
        with watch.data():
            said = told(log, "test_a_step_that_does_not_end")
            time.sleep(0.5)
        watch.done(42)
        told(log, "step 42 is done after")
    assert "waiting for data (decoding data.jsonl:17); last done is step 41" in said
    assert "same command goes on from the newest checkpoint" in said
    assert said_so_far(log).count("stands still") == 1


def test_the_limit_follows_the_usual_length_of_steps(log):
    with StallWatch(least_secs=0.1, first_secs=0.1, stream=log) as watch:
        watch.begin(0)
        for step in range(1, 6):
            time.sleep(0.06)
            watch.done(step)
        time.sleep(0.6)  # twenty times 0.06 s is more
        assert said_so_far(log) == ""
        said = told(log, "stands still")
    assert "waiting for its devices" in said
    assert "last done is step 5, a step usually takes 0.0" in said


def test_first_steps_and_checkpoints_have_a_limit_of_their_own(log):
    with StallWatch(least_secs=0.05, first_secs=1.0, stream=log) as watch:
        watch.begin(0)
        time.sleep(0.4)
        watch.done(1)
        with watch.checkpoint():
            time.sleep(0.4)
        assert said_so_far(log) == ""
        with watch.checkpoint():
            said = told(log, "saving a checkpoint; last done is step 1")
        assert "the checkpoint took" in said_so_far(log)
        watch.pause()
        with watch.checkpoint():
            time.sleep(0.1)
        time.sleep(0.3)  # outside of stages nothing is watched
    assert said.count("stands still") == said_so_far(log).count("stands still") == 1
