"""Two and four processes on this machine train as one does, and end and go on together."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.e2e.world import (
    ROOT,
    command,
    environment,
    history,
    make_world,
    num_metric_lines,
)
from tests.tolerances import FLOAT32_TRAINED

pytestmark = pytest.mark.slow
NUM_STEPS = 20
MESHES = {2: ("--config.mesh.fsdp=2",), 4: ("--config.mesh.fsdp=2", "--config.mesh.tensor=2")}
SHARED = ("--config.mesh.context=2",)  # over two processes, both of which have all rows then
LOCAL = ROOT / "launch" / "local.py"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world whose recipe has one stage, so that less is compiled."""
    folder = make_world(tmp_path_factory.mktemp("world"))
    recipe = folder / "recipe.py"
    first = '            stage("adapter", trained=["connector"], train_new_token_rows=True),\n'
    assert first in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(first, ""))
    for devices in (2, 4):
        alone(folder, devices, f"one-{devices}")
    return folder


def settings(devices):
    """Returns the environment of a process with some devices; a second compilation is an error."""
    again = {"PYTHONWARNINGS": "error:the training step was compiled again:RuntimeWarning"}
    return environment() | again | {"JAX_NUM_CPU_DEVICES": str(devices)}


def alone(folder, devices, workdir):
    """Trains in one process."""
    done = subprocess.run(
        command(folder, *MESHES[devices], workdir=workdir),
        cwd=ROOT,
        env=settings(devices),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def together(folder, count, workdir, *flags, last=(), mesh=None, folders=None):
    """Starts several processes of one device each; returns them.

    Args:
        last: flags of the last one alone.
        mesh: flags of the mesh.
        folders: that each is started in (default: the repository's root).
    """
    port = int(subprocess.check_output([sys.executable, "-c", FREE_PORT]))
    return [
        subprocess.Popen(
            command(
                folder,
                *(mesh or MESHES[count]),
                *flags,
                *(last if index == count - 1 else ()),
                workdir=workdir,
            ),
            cwd=folders[index] if folders else ROOT,
            env=settings(1)
            | {
                "PYTHONPATH": str(ROOT),
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]


FREE_PORT = "import socket; s = socket.socket(); s.bind(('', 0)); print(s.getsockname()[1])"


def ended(processes, timeout=240):
    """Waits for processes; returns exit codes and what each printed."""
    outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def assert_same_losses(folder, workdir, expected):
    """Asserts that two runs have the same steps and losses."""
    found, expected = history(folder, workdir), history(folder, expected)
    assert [line["step"] for line in found] == list(range(1, NUM_STEPS + 1))
    for one, other in zip(found, expected, strict=True):
        for name in ("loss", "text_loss", "cosine"):
            assert one[name] == pytest.approx(other[name], abs=FLOAT32_TRAINED), one["step"]


def wait_for_step(processes, folder, workdir, step):
    """Waits until a step is written down."""
    deadline = time.monotonic() + 240
    while num_metric_lines(folder, workdir) < step:
        assert all(process.poll() is None for process in processes), ended(processes)
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_two_processes_train_as_one_with_two_devices(world):
    codes, (first, second) = ended(together(world, 2, "two", "--profile=5:6"))
    assert codes == [0, 0], first + second
    assert_same_losses(world, "two", "one-2")
    assert "2 processes" in first and f"step {NUM_STEPS}/{NUM_STEPS}" in first
    said = [line for line in second.splitlines() if "[Gloo]" not in line]
    assert len(said) == 1 and "joining the others" in said[0]
    assert not list((world / "two").glob(".shared*"))
    assert len(list((world / "two" / "profile").rglob("*.xplane.pb"))) == 1
    lines = [json.loads(line) for line in (world / "two" / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if "compile_secs" in line] == [1]
    assert lines[-1]["tokens_per_sec"] > lines[-1]["useful_tokens_per_sec"] > 0


def test_four_processes_started_by_the_script_share_rows_of_a_tensor_mesh(world):
    """Each has one device, so `tensor` runs over two of them."""
    arguments = command(world, *MESHES[4], workdir="four")
    done = subprocess.run(
        [sys.executable, str(LOCAL), "4", *arguments],
        cwd=ROOT,
        env=settings(1),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_losses(world, "four", "one-4")
    assert {line[:3] for line in done.stdout.splitlines()} == {"[0]", "[1]", "[2]", "[3]"}


def test_context_runs_over_processes(world):
    """The losses are those of one process with split rows, which goes on from the checkpoint."""
    codes, outputs = ended(together(world, 2, "shared", "--max_steps=10", mesh=SHARED))
    assert codes == [0, 0], "".join(outputs)
    alone(world, 2, "shared")
    assert_same_losses(world, "shared", "one-2")
    lines = [json.loads(line) for line in (world / "shared" / "metrics.jsonl").open()]
    counted = [
        (round(line["tokens_per_sec"] * line["step_secs"]), line["images_per_sec"])
        for line in (lines[9], lines[19])
    ]
    assert {tokens for tokens, _ in counted} == {4 * 96}  # once, however many processes have them
    assert all(images > 0 for _, images in counted)


def test_rows_that_come_out_different_are_not_trained_on(world, tmp_path):
    """Two hosts have other files; where they share rows, nothing else would notice."""
    recipe = (world / "recipe.py").read_text()
    absolute = 'f"{folder}/images"'
    assert absolute in recipe
    folder = make_world(tmp_path / "world")
    (folder / "recipe.py").write_text(recipe.replace(absolute, '"images"'))
    hosts = [folder / "host0", folder / "host1"]
    for host in hosts:
        shutil.copytree(folder / "images", host / "images")
    shutil.copyfile(hosts[1] / "images" / "2.png", hosts[1] / "images" / "3.png")
    processes = together(folder, 2, "run", mesh=SHARED, folders=hosts)
    codes, outputs = ended(processes)
    assert codes == [2, 2], "".join(outputs)
    for output in outputs:
        assert "error: processes 0 on " in output and " and 1 on " in output
        assert "share rows of each batch" in output and "Traceback" not in output
    steps = num_metric_lines(folder, "run")
    if steps:
        assert (folder / "run" / "checkpoints" / f"{steps:08d}" / "manifest.json").exists()
    assert steps < 7  # an epoch shows every sample


def test_stopped_and_killed_processes_end_together_and_go_on(world):
    """SIGTERM to one, kill -9 of one, kill -9 of the other; the end is that of an unbroken run."""
    processes = together(world, 2, "broken")
    wait_for_step(processes, world, "broken", 3)
    processes[1].send_signal(signal.SIGTERM)
    codes, (first, second) = ended(processes)
    assert codes == [75, 75], first + second
    stopped = num_metric_lines(world, "broken")
    assert f"stopped at step {stopped}, saved" in first
    assert "SIGTERM: finishing the step" in second
    for victim, step in ((1, stopped + 4), (0, stopped + 8)):
        processes = together(world, 2, "broken")
        wait_for_step(processes, world, "broken", step)
        processes[victim].kill()
        begin = time.monotonic()
        codes, outputs = ended(processes)
        assert time.monotonic() - begin < 60
        assert codes[victim] == -signal.SIGKILL
        assert codes[1 - victim] not in (0, 75)
        assert "the same command goes on from the newest checkpoint" in outputs[1 - victim]
        assert "Traceback" not in outputs[1 - victim]
    alone(world, 2, "broken")  # as many devices in another number of processes
    assert_same_losses(world, "broken", "one-2")


def test_data_that_goes_bad_stops_all_at_one_step_saved(world, tmp_path):
    """Each process meets it at its own time, ahead of the step."""
    folder = make_world(tmp_path / "world")
    (folder / "recipe.py").write_text((world / "recipe.py").read_text())
    processes = together(folder, 2, "run", "--config.stages.vpit.total_steps=400")
    wait_for_step(processes, folder, "run", 3)
    with open(folder / "data.jsonl", "r+b") as file:
        file.write(b"no JSON")
    codes, (first, second) = ended(processes)
    assert codes == [2, 2], first + second
    for output in (first, second):
        assert "data.jsonl: the file was changed while it was read" in output
        assert "Traceback" not in output
    steps = num_metric_lines(folder, "run")
    assert 3 <= steps < 400
    assert (folder / "run" / "checkpoints" / f"{steps:08d}" / "manifest.json").exists()


def test_recipes_that_differ_are_refused(world):
    processes = together(world, 2, "differ", last=("--config.seed=7",))
    codes, (first, second) = ended(processes)
    assert codes == [2, 2], first + second
    assert "recipes differ between process 0" in first
