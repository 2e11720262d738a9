"""A user's folder, small: pictures, a LLaVA JSONL, a tokenizer, a recipe; and the command line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.golden_data import GOLDEN

ROOT = Path(__file__).resolve().parents[2]

RECIPE = '''
"""Two stages on a dozen random pictures."""

from metamorph_jax.config.schema_model import LlamaConfig, VisionConfig


def get_config(folder):
    def stage(name, **values):
        return {
            "name": name,
            "data": {
                "sources": [{"path": f"{folder}/data.jsonl", "image_root": f"{folder}/images"}],
                "max_seq_len": 96,
                "max_images": 4,
            },
            "optimizer": {"learning_rate": 3e-3},
            "global_batch_size": 4,
            "total_steps": 20,
        } | values

    return {
        "name": "tiny",
        "log_interval_steps": 10,
        "tokenizer": {"path": f"{folder}/tokenizer"},
        "model": {
            "llm": LlamaConfig(
                vocab_size=320, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
                embed_dim=16, mlp_dim=32, max_seq_len=96,
            ),
            "vision": VisionConfig(
                image_size=16, patch_size=4, num_layers=1, num_heads=2, embed_dim=8, mlp_dim=16
            ),
            "visual_tokens": {"num_tokens": 4},
        },
        "stages": [
            stage("adapter", trained=["connector"], train_new_token_rows=True),
            stage("vpit", trained=["connector", "language_model", "vision_head"]),
        ],
        "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
        "checkpoint": {"interval_steps": 5},
    }
'''


def make_world(folder: Path) -> Path:
    """Writes everything a run needs into `folder` and returns it."""
    (folder / "images").mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    shutil.copyfile(GOLDEN / "tokenizer.json", folder / "tokenizer" / "tokenizer.json")
    (folder / "recipe.py").write_text(RECIPE)
    rng = np.random.default_rng(0)
    records = []
    for index in range(12):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        records += [
            _record(f"{index}.png", "<image>\nWhat is it?", f"A thing, number {index}."),
            _record(f"{index}.png", f"Draw thing {index}.", "Here: <image>"),
        ]
    write_records(folder, records)
    return folder


def _record(image: str, question: str, answer: str) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": image, "image": image, "conversations": turns}


def read_records(folder: Path) -> list[dict]:
    """Returns the records of a world."""
    return [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]


def write_records(folder: Path, records: list[dict]) -> None:
    """Replaces the records of a world."""
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def command(folder: Path, *flags: str, workdir: str = "run") -> list[str]:
    """Returns the training command for a world."""
    config = f"--config={folder}/recipe.py:{folder}"
    workdir = f"--workdir={folder}/{workdir}"
    return [sys.executable, "-m", "metamorph_jax.train", config, workdir, *flags]


def environment() -> dict[str, str]:
    """Returns the environment of a training process: one device; conftest's compile cache."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def train(folder: Path, *flags: str, workdir: str = "run") -> subprocess.CompletedProcess:
    """Runs the training command to its end."""
    return subprocess.run(
        command(folder, *flags, workdir=workdir),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def start(folder: Path, *flags: str, workdir: str = "run") -> subprocess.Popen:
    """Starts the training command."""
    return subprocess.Popen(
        command(folder, *flags, workdir=workdir),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def history(folder: Path, workdir: str = "run") -> list[dict]:
    """Returns what each step computed, without the clock's part."""
    names = ("step", "stage", "stage_step", "loss", "text_loss", "cosine", "grad_norm")
    lines = (folder / workdir / "metrics.jsonl").read_text().splitlines()
    return [{name: json.loads(line)[name] for name in names} for line in lines]


def num_metric_lines(folder: Path, workdir: str) -> int:
    """Returns how many steps have been written down so far."""
    file = folder / workdir / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0
