"""Whole reports: of the demo, of a user's own run, and of a run with nothing but metrics."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from metamorph_jax.data.digits import write_digits
from metamorph_jax.decoding.features import Encoder
from metamorph_jax.errors import UserError
from metamorph_jax.metrics.phases import record_phase
from metamorph_jax.metrics.writers import MetricWriter
from metamorph_jax.report.__main__ import main
from metamorph_jax.visualizer.checkpoint import TrainingState, save_checkpoint
from metamorph_jax.visualizer.model import Visualizer
from tests.tiny_run import tiny_config, write_tiny_run
from tests.unit.report.page_reader import PageReader
from tests.visualizer_files import MODEL

NUM_HELDOUT, NUM_PROMPTS = 20, 100


def write_metrics(run):
    writer = MetricWriter(run)
    for step in range(1, 5):
        values = {"stage": "vpit", "stage_step": step, "text_loss": 1 / step, "cosine": step / 5}
        writer.write_scalars(step, values | {"tokens_per_sec": 10.0, "nan": float("nan")})
    writer.close()
    record_phase(run, "train/vpit", 12.5)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The demo's data with two held-out scans and two plain prompts per digit."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    lines = (folder / "heldout_images.jsonl").read_text().splitlines()
    by_digit = sorted(lines, key=lambda line: json.loads(line)["digit"])
    kept = [line for digit in range(10) for line in of_digit(by_digit, digit)[:2]]
    (folder / "heldout_images.jsonl").write_text("\n".join(kept))
    images = {json.loads(line)["image"] for line in kept}
    questions = (folder / "heldout_questions.jsonl").read_text().splitlines()
    questions = [line for line in questions if json.loads(line)["image"] in images]
    (folder / "heldout_questions.jsonl").write_text("\n".join(questions))
    prompts = (folder / "prompts.jsonl").read_text().splitlines()
    plain = [line for line in prompts if json.loads(line)["kind"] == "class"]
    kept = [line for digit in range(10) for line in of_digit(plain, digit)[:2]]
    (folder / "prompts.jsonl").write_text("\n".join(kept + prompts[len(plain) :]))
    return folder


def of_digit(lines, digit):
    return [line for line in lines if json.loads(line)["digit"] == digit]


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    """An untrained run with a visualizer of its own."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    write_tiny_run(folder, tiny_config(str(digits / "tokenizer")))
    write_metrics(folder)
    latents = dataclasses.replace(MODEL.latents, size=8, picture_size=32)
    torch.manual_seed(0)
    model = Visualizer(dataclasses.replace(MODEL, token_dim=24, latents=latents)).eval()
    writer = MetricWriter(folder / "visualizer")
    writer.write_scalars(1, {"loss": 0.5})
    writer.close()
    model.encoder_fingerprint = Encoder.load(folder).fingerprint
    save_checkpoint(folder / "visualizer", model, TrainingState(1, {}, {}, ""), keep=2)
    return folder


def read(run):
    page = (run / "report.html").read_text()
    return PageReader(page), json.loads((run / "summary.json").read_text())


def test_demo_report_is_complete(run, digits, capsys):
    assert main([f"--run={run}", f"--data={digits}"]) == 0
    reader, summary = read(run)
    assert reader.is_self_contained
    for heading in (
        "Results",
        "Pictures",
        "Controls",
        "Held-out questions",
        "Training curves",
        "Stage vpit",
        "Stage visualizer",
        "Seconds per phase",
        "Recipe and versions",
        "config.model.llm.embed_dim = 32",
    ):
        assert heading in reader.text
    for name in (
        "understanding_accuracy",
        "generation_accuracy",
        "reconstruction_accuracy",
        "edit_accuracy",
        "cosine",
        "cosine_class_mean_baseline",
        "shuffled_prompt_accuracy",
        "well_formed_fraction",
    ):
        assert isinstance(summary[name], float), name
    assert summary["classifier_accuracy"] > 0.9
    assert summary["understanding_accuracy"] < 0.5  # it was never trained
    assert set(summary["style_order"]) >= {"ink_ordered", "slant_ordered"}
    assert set(summary["seconds"]) == {"train/vpit", "report"}
    assert summary["last_steps"]["vpit"]["nan"] is None
    answers = (run / "answers.jsonl").read_text().splitlines()
    assert len(answers) == summary["num_questions"] >= 3 * NUM_HELDOUT
    assert len(list((run / "pictures").glob("image_*.png"))) == NUM_PROMPTS + 2 * NUM_HELDOUT
    assert "generation accuracy" in capsys.readouterr().out


def test_demo_without_visualizer_still_judges_tokens(run, digits, tmp_path):
    copy = tmp_path / "bare"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("visualizer", "pictures"))
    main([f"--run={copy}", f"--data={digits}"])
    reader, summary = read(copy)
    main([f"--run={copy}", f"--data={digits}"])
    assert summary == read(copy)[1] | {"seconds": summary["seconds"]}  # everything is repeatable
    assert list(summary["seconds"]) == ["train/vpit", "report"]
    assert "There is no visualizer" in reader.text
    assert "generation_accuracy" not in summary
    assert summary["cosine_class_mean_baseline"] > 0


def test_own_questions_get_a_page(run, tmp_path):
    Image.fromarray(np.full((50, 40, 3), 90, np.uint8)).save(tmp_path / "a.png")
    turns = [
        {"from": "human", "value": "<image>\nIs this <b>grey</b>?"},
        {"from": "gpt", "value": "Yes."},
    ]
    lines = [json.dumps({"image": "a.png", "conversations": turns})] * 3
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    main([f"--run={run}", f"--data={tmp_path / 'own.jsonl'}", "--max_questions=2"])
    reader, summary = read(run)
    assert summary["num_questions"] == 2
    assert summary["understanding_accuracy"] == 0.0
    assert "Is this <b>grey</b>?" in reader.text
    assert reader.is_self_contained
    assert "Pictures" not in reader.text


def test_run_with_metrics_alone_gets_curves(tmp_path):
    write_metrics(tmp_path)
    assert main([f"--run={tmp_path}"]) == 0
    reader, summary = read(tmp_path)
    assert "Stage vpit" in reader.text
    assert "no recipe.txt" in reader.text
    assert summary["last_steps"]["vpit"]["cosine"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run=absent"], "--run=absent is no folder"),
        (["--run=.", "--data=absent.jsonl"], "--data=absent.jsonl"),
        (["--run=.", "--visualizer=absent"], "--visualizer=absent is no folder"),
    ],
)
def test_wrong_paths_are_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        main(arguments)
    assert list(tmp_path.iterdir()) == []
