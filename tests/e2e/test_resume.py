"""A run that was killed, stopped or damaged ends with the losses of an unbroken one."""

import random
import signal
import time

import pytest

from tests.e2e.world import (
    history,
    make_world,
    num_metric_lines,
    read_records,
    start,
    train,
    write_records,
)

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
    wait_for_lines(process, world, workdir, rng.randrange(NUM_STEPS - 5))
    time.sleep(rng.uniform(0, 0.03))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it must die in the middle"
    finish(world, workdir)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_its_exit_code(world, number):
    workdir = f"stopped-{number.name}"
    process = start(world, workdir=workdir)
    wait_for_lines(process, world, workdir, 12)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75, output
    assert f"{number.name}: finishing the step" in output
    assert "stopped at step" in output and "saved" in output
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


def contents(folder):
    """Returns the bytes of a run's own files."""
    return {name: (folder / name).read_bytes() for name in ("metrics.jsonl", "recipe.txt")}


def test_a_checkpoint_of_another_model_is_refused_and_nothing_is_touched(world):
    train(world, "--max_steps=8", workdir="other")
    before = contents(world / "other")
    done = train(world, "--resume=5", "--config.model.llm.mlp_dim=48", workdir="other")
    assert done.returncode == 2
    assert "language_model/blocks/mlp" in done.stderr
    assert "Traceback" not in done.stderr
    assert contents(world / "other") == before
    names = sorted(path.name for path in (world / "other" / "checkpoints").iterdir())
    assert names == ["00000005", "00000008"]


def test_another_recipe_is_refused_with_what_changed(world):
    train(world, "--max_steps=8", workdir="changed")
    before = contents(world / "changed")
    flags = ("--config.seed=7", "--config.stages.adapter.optimizer.learning_rate=0.5")
    done = train(world, *flags, workdir="changed")
    assert done.returncode == 2
    assert "config.seed: 0 -> 7" in done.stderr
    assert "config.stages.adapter.optimizer.learning_rate: 0.003 -> 0.5" in done.stderr
    assert contents(world / "changed") == before
    free = ("--config.checkpoint.interval_steps=3", "--config.stages.vpit.total_steps=1")
    done = train(world, *free, workdir="changed")
    assert done.returncode == 0, done.stderr
    assert num_metric_lines(world, "changed") == 21


def test_other_data_is_refused(tmp_path):
    folder = make_world(tmp_path / "world")
    train(folder, "--max_steps=8")
    records = read_records(folder)
    write_records(folder, records[:-1])
    done = train(folder)
    assert done.returncode == 2
    assert "the data of stage 'adapter' has changed" in done.stderr


def test_branching_off_an_earlier_step_keeps_one_line_per_step(world):
    train(world, "--max_steps=15", workdir="branch")
    done = train(world, "--resume=10", "--max_steps=12", workdir="branch")
    assert done.returncode == 0, done.stderr
    assert [step["step"] for step in history(world, "branch")] == list(range(1, 13))
    names = {path.name for path in (world / "branch" / "checkpoints").iterdir()}
    assert names == {"00000010", "00000012", "00000015.superseded-1"}
    finish(world, "branch")


def test_a_run_that_stays_nan_stops_and_names_its_samples(world):
    flags = ("--config.stages.adapter.optimizer.learning_rate=1e30",)
    done = train(world, *flags, workdir="nan")
    assert done.returncode == 2
    assert "(5 in a row)" in done.stderr
    assert "data.jsonl lines " in done.stderr
    assert "Traceback" not in done.stderr
    steps = history(world, "nan")
    assert steps[-1]["loss"] == "nan"
    assert [path.name for path in (world / "nan" / "checkpoints").iterdir()] == ["00000005"]
