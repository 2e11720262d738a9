"""What the scripts in launch/ would do, and what they do with a cluster's commands in reach."""

import os
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
HOSTILE = ("--config.a=[1,2]", '--config.b=it\'s $HOME "*"', "--config.c=a\\b;c&d", "--config.d=")
# In place of python; more output than a pipe holds.
ARGUMENTS = "#!/bin/bash\nprintf '%s\\0' \"$@\" > arguments\nseq 50000 >&2\n"
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


def test_a_local_process_ended_by_a_signal_has_the_code_of_shells():
    code = "import os; os.kill(os.getpid(), 9 * (os.environ['JAX_PROCESS_ID'] == '1'))"
    assert launch("local.py", "2", sys.executable, "-c", code).returncode == 128 + 9


def test_a_local_command_that_is_not_there_is_named():
    done = launch("local.py", "2", "no-such-command")
    assert done.returncode == 127
    assert done.stderr == "launch/local.py: no-such-command: No such file or directory\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
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
    assert shlex.split(command)[3:] == ["my/python", "-m", "metamorph_jax.train", *TRAIN]


def test_slurm_prints_the_same_from_any_folder_and_hands_on_its_cpus():
    done = subprocess.run(
        ["./slurm.sh", "--dry_run", *HOSTILE],
        cwd=LAUNCH,
        env=os.environ | {"SLURM_CPUS_PER_TASK": "64"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    command = next(line for line in done.stdout.splitlines() if line.startswith("srun"))
    assert "--cpus-per-task=64" in shlex.split(command)
    assert shlex.split(command)[-4:] == list(HOSTILE)


def test_slurm_says_where_it_has_to_be_called(tmp_path):
    script = tmp_path / "slurm_script"
    script.write_text((LAUNCH / "slurm.sh").read_text())
    variables = os.environ | {"SLURM_SUBMIT_DIR": str(tmp_path)}
    for given, code in (({}, 2), ({"METAMORPH_DIR": str(ROOT)}, 0)):
        done = subprocess.run(
            ["bash", script, "--dry_run", "--config=x"],
            cwd=tmp_path,
            env=variables | given,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        assert ("set METAMORPH_DIR" in done.stderr) == bool(code)


def fake_cluster(folder):
    """Writes commands of a cluster that say what was asked of them; srun runs its command."""
    commands = {
        "srun": '[ "$1" = --kill-on-bad-exit=0 ] && shift 2; exec "$@"',
        "scancel": f'echo "scancel $@" >> {folder}/log; kill -TERM $(cat {folder}/pid)',
        "scontrol": f"""
            [ "$1" = show ] && echo "JobId=7 JobState=${{STATE:-RUNNING}} Reason=None" && exit
            echo "scontrol $@" >> {folder}/log; kill -TERM $PPID""",  # as SLURM does
        "trainer": f'echo $$ > {folder}/pid; trap "exit 75" TERM; while :; do sleep 0.05; done',
        "starting": f"echo $$ > {folder}/pid; exec sleep 60",
        "finished": "exit 0",
    }
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return {"PATH": path, "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT)}


@pytest.mark.parametrize(
    ("trainer", "number", "state", "code", "queues_again"),
    [
        ("trainer", signal.SIGUSR1, "RUNNING", 75, True),  # its time is nearly up
        ("trainer", signal.SIGUSR1, "COMPLETING", 75, True),  # it is up, while the run saved
        ("trainer", signal.SIGTERM, "RUNNING", 75, True),  # to be preempted
        ("trainer", signal.SIGTERM, "COMPLETING", 75, False),  # cancelled
        ("starting", signal.SIGTERM, "RUNNING", 143, True),
        ("starting", signal.SIGTERM, "CANCELLED", 143, False),
    ],
)
def test_slurm_queues_again_what_was_stopped(tmp_path, trainer, number, state, code, queues_again):
    variables = os.environ | fake_cluster(tmp_path) | {"PYTHON": trainer, "STATE": state}
    script = tmp_path / "slurm_script"  # SLURM runs a copy
    script.write_text((LAUNCH / "slurm.sh").read_text())
    job = subprocess.Popen(["bash", script, "--config=x"], env=variables, cwd=tmp_path)
    while not (tmp_path / "pid").exists():
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(number)
    assert job.wait(timeout=30) == code
    asked = (tmp_path / "log").read_text().splitlines()
    assert asked == ["scancel --signal=TERM 7", *["scontrol requeue 7"] * queues_again]


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


def received(folder):
    """Returns the arguments that ARGUMENTS has written down."""
    return (folder / "arguments").read_text().split("\0")[:-1]


def with_python(folder):
    """Makes a folder in which .venv/bin/python writes its arguments down."""
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/python").write_text(ARGUMENTS)
    (folder / ".venv/bin/python").chmod(0o755)
    return folder


def test_tpu_hosts_get_the_arguments_as_they_were_given(tmp_path):
    folder = with_python(tmp_path / "my folder")
    done = launch("tpu_vm.sh", "--dry_run", *TRAIN, *HOSTILE, **TPU, DIR="my folder")
    remote = shlex.split(done.stdout)[-1].removeprefix("--command=")
    with subprocess.Popen(["bash", "-c", remote], cwd=tmp_path, stdout=subprocess.PIPE) as host:
        host.stdout.close()  # the terminal is gone
    assert host.returncode == 0
    assert received(folder) == ["-m", "metamorph_jax.train", *TRAIN, *HOSTILE]
    assert (folder / "train.log").read_text().endswith("\n50000\n")


def test_gke_prints_a_jobset_with_a_pod_per_host():
    done = launch("gke.sh", "--dry_run", *TRAIN, *HOSTILE, "--config.name=$(A)", **GKE)
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
    assert container["command"][3:] == [*TRAIN, *HOSTILE, "--config.name=$$(A)"]  # its escape
    assert container["resources"]["limits"]["google.com/tpu"] == 4
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": "train", "operator": "In", "values": [2]}
    assert container["name"] == "train" and pod["restartPolicy"] == "Never"


def test_a_topology_that_is_none_is_refused():
    done = launch("gke.sh", "--dry_run", *TRAIN, **GKE | {"TOPOLOGY": "4,4"})
    assert done.returncode == 2 and "TOPOLOGY=4,4: expected" in done.stderr


def test_skypilot_passes_arguments_into_its_yaml(tmp_path):
    done = launch("skypilot.sh", "--dry_run", *TRAIN, *HOSTILE, NODES="4")
    words = shlex.split(done.stdout)
    assert words[:3] == ["sky", "jobs", "launch"] and "--num-nodes=4" in words
    assert words[-1] == "launch/skypilot.yaml"
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    given = next(word for word in words if word.startswith("--env=")).removeprefix("--env=")
    name, _, value = given.partition("=")
    assert name in task["envs"]
    node = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2"}
    variables = os.environ | node | {"SKYPILOT_NODE_RANK": "1", name: value}
    run = task["run"] + "echo $JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID"
    done = subprocess.run(
        ["bash", "-c", run],
        cwd=with_python(tmp_path),
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "10.0.0.1:8476 2 1\n"
    assert received(tmp_path) == ["-m", "metamorph_jax.train", *TRAIN, *HOSTILE]
