"""Training on a tiny Stable Diffusion in real processes: killed, and two at once."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from metamorph_jax.metrics.writers import read_metrics
from metamorph_jax.visualizer.checkpoint import load_visualizer
from tests import tolerances
from tests.visualizer_files import write_data, write_encoder, write_stable_diffusion

pytestmark = pytest.mark.slow
NUM_STEPS = 24
RECIPE = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({{
        "name": "tiny_sd",
        "stable_diffusion": {folder!r},
        "model": {{
            "num_tokens": 4, "token_dim": 6, "context_dim": 8, "context_len": 5,
            "projector": {{"hidden_dim": 12}},
            "latents": {{"kind": "vae", "size": 8, "channels": 4, "picture_size": 16}},
            "diffusion": {{
                "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
            }},
            "view": "same_crop",
        }},
        "training": {{
            "total_steps": {steps}, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 1,
            "ema_decay": 0.9, "grad_accum_steps": 2, "min_snr_gamma": 5.0, "noise_offset": 0.1,
            "gradient_checkpointing": True,
        }},
        "data": {{"num_workers": 1}},
        "checkpoint": {{"interval_steps": 7}},
    }})
"""


@pytest.fixture
def command(tmp_path):
    folder = write_stable_diffusion(tmp_path / "sd")
    (tmp_path / "recipe.py").write_text(RECIPE.format(folder=str(folder), steps=NUM_STEPS))
    sources = write_data(tmp_path / "data", size=(30, 20))
    argv = [sys.executable, "-m", "metamorph_jax.visualizer.train"]
    argv += [f"--config={tmp_path / 'recipe.py'}", f"--image_root={sources.image_root}"]
    return [*argv, f"--encoder={write_encoder(tmp_path / 'export')}"]


def start(command, out, *more, **environment):
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen([*command, f"--out={out}", *more], env=variables)


def test_killed_training_ends_like_the_unbroken_one(command, tmp_path):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert start(command, unbroken).wait(timeout=120) == 0
    process = start(command, broken)
    deadline = time.monotonic() + 120
    while len(read_metrics(broken)) < 10 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert 10 <= len(read_metrics(broken)) < NUM_STEPS
    assert start(command, broken).wait(timeout=120) == 0
    assert read_metrics(broken) == read_metrics(unbroken)
    newest = f"checkpoints/{NUM_STEPS:08d}"
    for name in ("model.safetensors", "ema.safetensors", "training_state.safetensors"):
        ours, theirs = load_file(broken / newest / name), load_file(unbroken / newest / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


def test_two_processes_learn_what_one_does(command, tmp_path):
    alone, together, few = tmp_path / "alone", tmp_path / "together", "--max_steps=6"
    assert start(command, alone, few).wait(timeout=120) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        start(
            command,
            together,
            few,
            ACCELERATE_USE_CPU="true",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            WORLD_SIZE="2",
            RANK=rank,
            LOCAL_RANK=rank,
        )
        for rank in ("0", "1")
    ]
    assert [process.wait(timeout=180) for process in ranks] == [0, 0]
    found, expected = read_metrics(together), read_metrics(alone)
    assert len(found) == 6
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=tolerances.FLOAT32_TRAINED)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    weights = load_visualizer(together).state_dict()
    for name, value in load_visualizer(alone).state_dict().items():
        assert (weights[name] - value).abs().max() <= 1e-4, name
