"""What the scripts in launch/ would do, and what they do with a cluster's commands in reach."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
TRAIN = ("--config=configs/digits.py", "--workdir=/shared/my run", "--config.seed=3")
GKE = {
    "NAME": "digits",
    "IMAGE": "registry/metamorph_jax",
    "CLAIM": "runs",
    "ACCELERATOR": "tpu-v5p-slice",
    "TOPOLOGY": "4x4x4",
}
TPU = {"TPU": "my-pod", "ZONE": "us-central1-a"}


def launch(script, *arguments, cwd=ROOT, **variables):
    return subprocess.run(
        [str(LAUNCH / script), *arguments],
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_parse(script):
    subprocess.run(["bash", "-n", script], check=True)
    is_sourced = script.name == "common.sh"
    assert os.access(script, os.X_OK) != is_sourced
    if not is_sourced:
        assert "set -euo pipefail" in script.read_text() or "common.sh" in script.read_text()


@pytest.mark.parametrize("script", ["slurm.sh", "tpu_vm.sh", "gke.sh", "skypilot.sh"])
def test_without_arguments_a_script_says_how_it_is_used(script):
    done = launch(script)
    assert done.returncode == 2
    assert f"launch/{script} --dry_run" in done.stderr
    assert "#" not in done.stderr


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh"])
def test_a_missing_variable_is_named(script):
    done = launch(script, "--dry_run", *TRAIN)
    assert done.returncode == 2
    assert "is not set" in done.stderr


def test_local_processes_know_their_places(tmp_path):
    dry = launch("local.py", "--dry_run", "--port=77", "2", "python", "-m", "x", "--a=b c")
    lines = [shlex.split(line) for line in dry.stdout.splitlines()]
    assert [line[0] for line in lines] == ["env", "env"]
    assert lines[1][1:4] == [
        "JAX_COORDINATOR_ADDRESS=localhost:77",
        "JAX_NUM_PROCESSES=2",
        "JAX_PROCESS_ID=1",
    ]
    assert lines[1][4:] == ["python", "-m", "x", "--a=b c"]
    code = "import os; print('I am', os.environ['JAX_PROCESS_ID'])"
    done = launch("local.py", "3", sys.executable, "-c", code)
    assert sorted(done.stdout.splitlines()) == ["[0] I am 0", "[1] I am 1", "[2] I am 2"]


@pytest.mark.parametrize(
    ("codes", "code"), [((0, 0), 0), ((75, 75), 75), ((75, 2), 2), ((0, 1), 1)]
)
def test_local_processes_end_with_one_code(codes, code):
    exits = f"import os; os._exit({codes}[int(os.environ['JAX_PROCESS_ID'])])"
    assert launch("local.py", "2", sys.executable, "-c", exits).returncode == code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_all_local_processes_once(number):
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, str(LAUNCH / "local.py"), "2", sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert {process.stdout.readline()[4:] for _ in range(2)} == {"ready\n"}
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 75


def test_slurm_prints_directives_and_command():
    done = launch("slurm.sh", "--dry_run", *TRAIN, PYTHON="my/python")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --requeue" in done.stdout and "#SBATCH --signal=B:USR1@300" in done.stdout
    command = next(line for line in done.stdout.splitlines() if line.startswith("srun"))
    assert shlex.split(command)[-5:] == ["my/python", "-m", "metamorph_jax.train", *TRAIN][-5:]


def fake_cluster(folder):
    """Writes commands of a cluster that say what was asked of them; srun runs its command."""
    commands = {
        "srun": '[ "$1" = --kill-on-bad-exit=0 ] && shift 2; exec "$@"',
        "scancel": f'echo "scancel $@" >> {folder}/log; kill -TERM $(cat {folder}/pid)',
        "scontrol": f'echo "scontrol $@" >> {folder}/log',
        "trainer": f'echo $$ > {folder}/pid; trap "exit 75" TERM; while :; do sleep 0.05; done',
        "finished": "exit 0",
    }
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return {"PATH": path, "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT)}


def test_slurm_saves_and_queues_again_before_its_time_is_up(tmp_path):
    variables = os.environ | fake_cluster(tmp_path) | {"PYTHON": "trainer"}
    script = tmp_path / "slurm_script"  # SLURM runs a copy
    script.write_text((LAUNCH / "slurm.sh").read_text())
    job = subprocess.Popen(["bash", script, "--config=x"], env=variables)
    while not (tmp_path / "pid").exists():
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=30) == 75
    asked = (tmp_path / "log").read_text().splitlines()
    assert asked == ["scancel --signal=TERM 7", "scontrol requeue 7"]


def test_a_slurm_job_that_is_done_does_not_queue_again(tmp_path):
    variables = fake_cluster(tmp_path) | {"PYTHON": "finished"}
    assert launch("slurm.sh", "--config=x", **variables).returncode == 0
    assert not (tmp_path / "log").exists()


def test_tpu_vm_prints_one_command_for_all_hosts():
    done = launch("tpu_vm.sh", "--dry_run", *TRAIN, **TPU)
    words = shlex.split(done.stdout)
    assert words[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "my-pod"]
    assert "--worker=all" in words and "--zone=us-central1-a" in words
    remote = next(word for word in words if word.startswith("--command="))
    assert "JAX_NUM_PROCESSES=auto .venv/bin/python -m metamorph_jax.train" in remote
    assert r"--workdir=/shared/my\ run" in remote


def test_gke_prints_a_jobset_with_a_pod_per_host():
    done = launch("gke.sh", "--dry_run", *TRAIN, '--config.name="a\\b"', **GKE)
    jobset = yaml.safe_load(done.stdout)
    assert jobset["kind"] == "JobSet" and jobset["metadata"]["name"] == "digits"
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 64 // 4
    assert job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4x4"
    (container,) = pod["containers"]
    assert container["command"][:3] == ["python", "-m", "metamorph_jax.train"]
    assert container["command"][3:] == [*TRAIN, '--config.name="a\\b"']
    assert container["resources"]["limits"]["google.com/tpu"] == 4


def test_skypilot_passes_arguments_into_its_yaml():
    done = launch("skypilot.sh", "--dry_run", *TRAIN, NODES="4")
    words = shlex.split(done.stdout)
    assert words[:3] == ["sky", "jobs", "launch"] and "--num-nodes=4" in words
    assert words[-1] == "launch/skypilot.yaml"
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert re.search(r"metamorph_jax\.train \$TRAIN_ARGUMENTS", task["run"])
    subprocess.run(["bash", "-n"], input=task["run"], text=True, check=True)
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        assert f"export {name}=" in task["run"]
