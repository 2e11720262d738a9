"""A run that was killed, stopped or damaged ends with the losses of an unbroken one."""

import random
import signal
import time

import pytest

from tests.e2e.world import history, make_world, num_metric_lines, start, train

pytestmark = pytest.mark.slow
NUM_STEPS = 40


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = make_world(tmp_path_factory.mktemp("world"))
    done = train(folder, workdir="unbroken")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def wait_for_lines(process, folder, workdir, count):
    """Waits until `count` steps are written down, or the process has ended."""
    while num_metric_lines(folder, workdir) < count and process.poll() is None:
        time.sleep(0.005)


def finish(folder, workdir):
    done = train(folder, workdir=workdir)
    assert done.returncode == 0, done.stdout + done.stderr
    assert history(folder, workdir) == history(folder, "unbroken")
    return done.stdout


def test_the_unbroken_run_has_every_step_and_learns(world):
    steps = history(world, "unbroken")
    assert [step["step"] for step in steps] == list(range(1, NUM_STEPS + 1))
    assert steps[-1]["text_loss"] < steps[20]["text_loss"]
    assert steps[-1]["cosine"] > steps[20]["cosine"]


@pytest.mark.parametrize("trial", range(10))
def test_killed_at_a_random_moment(world, trial):
    rng = random.Random(trial)
    workdir = f"killed-{trial}"
    process = start(world, workdir=workdir)
    wait_for_lines(process, world, workdir, rng.randrange(NUM_STEPS))
    time.sleep(rng.uniform(0, 0.05))
    process.kill()
    process.communicate()
    finish(world, workdir)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_its_exit_code(world, number):
    workdir = f"stopped-{number.name}"
    process = start(world, workdir=workdir)
    wait_for_lines(process, world, workdir, 12)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75, output
    assert f"{number.name}: stopped at step" in output
    assert "Traceback" not in output
    last = num_metric_lines(world, workdir)
    assert f"resuming at step {last} " in finish(world, workdir)


def test_a_damaged_newest_checkpoint_is_named_and_the_previous_used(world):
    train(world, "--max_steps=20", workdir="damaged")
    newest = max((world / "damaged" / "checkpoints").iterdir())
    assert newest.name == "00000020"
    largest = max(
        (file for file in newest.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    done = train(world, workdir="damaged")
    assert done.returncode == 0, done.stdout + done.stderr
    assert largest.name in done.stdout + done.stderr
    assert "resuming at step 15 " in done.stdout
    assert history(world, "damaged") == history(world, "unbroken")


def test_max_steps_stops_in_the_second_stage_and_resume_goes_on_there(world):
    done = train(world, "--max_steps=27", workdir="two")
    assert done.returncode == 0, done.stdout + done.stderr
    assert num_metric_lines(world, "two") == 27
    assert "resuming at step 27 (vpit 7)" in finish(world, "two")


def test_a_finished_run_has_nothing_left_to_do(world):
    finish(world, "unbroken")


def test_resume_flags(world):
    train(world, "--max_steps=10", workdir="flags")
    never = train(world, "--resume=never", workdir="flags")
    assert never.returncode == 2
    assert "already holds checkpoints at steps [10, 5]" in never.stderr
    other = train(world, "--resume=7", workdir="flags")
    assert other.returncode == 2
    assert "7" in other.stderr and "5" in other.stderr
    must = train(world, "--resume=must", workdir="nothing-here")
    assert must.returncode == 2
    assert "no checkpoint" in must.stderr
    odd = train(world, "--resume=sometimes", workdir="flags")
    assert odd.returncode == 2
    assert "auto, never, must or a step number" in odd.stderr
    exact = train(world, "--resume=5", "--max_steps=6", workdir="flags")
    assert exact.returncode == 0, exact.stderr
    assert num_metric_lines(world, "flags") == 6


def test_a_checkpoint_of_another_model_is_refused_and_kept(world):
    train(world, "--max_steps=5", workdir="other")
    done = train(world, "--config.model.llm.mlp_dim=48", workdir="other")
    assert done.returncode == 2
    assert "language_model/blocks/mlp" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in (world / "other" / "checkpoints").iterdir()] == ["00000005"]
