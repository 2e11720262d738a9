"""A LLaVA recipe from data to answers: text loss only, CLIP tower, no vision head."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests import tolerances
from tests.data_files import small_tokenizer
from tests.e2e.world import ROOT, environment, train, write_records

RECIPE = '''
"""LLaVA-1.5's two stages, tiny: the projector on captions, then projector and decoder."""

from metamorph_jax.config.schema_model import LlamaConfig, VisionConfig


def get_config(folder):
    def stage(name, trained, learning_rate, **loss):
        return {
            "name": name,
            "trained": trained,
            "data": {
                "sources": [{"path": f"{folder}/data.jsonl", "image_root": f"{folder}/images"}],
                "max_seq_len": 192,
                "max_images": 4,
            },
            "loss": {"visual_weight": 0.0} | loss,
            "optimizer": {"learning_rate": learning_rate},
            "global_batch_size": 2,
            "total_steps": 8,
        }

    return {
        "name": "llava_tiny",
        "tokenizer": {"path": f"{folder}/tokenizer", "template": "v1"},
        "model": {
            "llm": LlamaConfig(
                vocab_size=320, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
                embed_dim=16, mlp_dim=32, max_seq_len=192, qkv_bias=True,
            ),
            "vision": VisionConfig(
                family="clip", image_size=12, patch_size=4, num_layers=2, num_heads=2,
                embed_dim=8, mlp_dim=16, feature_layer=-2,
            ),
            "visual_tokens": {"reduction": "none", "num_tokens": 9, "normalize": False},
            "vision_head": "none",
        },
        "stages": [
            stage("projector", ["connector"], 3e-3),
            stage("instruct", ["connector", "language_model"], 1e-2),
        ],
        "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
    }
'''


def make_llava_world(folder):
    (folder / "images").mkdir()
    small_tokenizer(folder / "tokenizer")
    (folder / "recipe.py").write_text(RECIPE)
    rng = np.random.default_rng(0)
    records = []
    for index in range(8):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        records.append(record([f"{index}.png"], "<image>\nWhat is this?", "This is a cat."))
        records.append(record([], "What is this?", "Here it is."))
    write_records(folder, records)
    return records


def record(images, question, answer):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"image": images, "conversations": turns}


@pytest.mark.slow
def test_training_and_answers(tmp_path):
    records = make_llava_world(tmp_path)
    result = train(tmp_path, "--dry_run")
    assert result.returncode == 0, result.stderr
    assert "vision_head" not in result.stdout and "model FLOPs" in result.stdout

    result = train(tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 16
    for line in lines:
        assert abs(line["loss"] - line["text_loss"]) < tolerances.FLOAT32_REORDERED * line["loss"]
        assert not {"cosine", "visual_loss"} & set(line)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5

    image = str(tmp_path / "images" / "0.png")
    command = [sys.executable, "-m", "metamorph_jax.generate", f"--checkpoint={tmp_path}/run"]
    command += ["--prompt=What is this?", f"--image={image}", "--max_new_tokens=12"]
    command += [f"--out={tmp_path}/answer"]
    result = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads((tmp_path / "answer" / "answer.json").read_text())
    assert "<image>" not in answer["text"]

    weight = "--config.stages.instruct.loss.visual_weight=1.0"
    result = train(tmp_path, weight, workdir="weighted")
    assert result.returncode == 2 and "model.vision_head is 'none'" in result.stderr

    write_records(tmp_path, [*records, record(["0.png"], "Draw a dog.", "Here it is: <image>")])
    announced = "--config.tokenizer.image_tokens=True"
    result = train(tmp_path, announced, workdir="painted")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "1 images stand in answers" in result.stderr, result.stderr
