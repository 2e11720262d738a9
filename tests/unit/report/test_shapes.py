"""The report on shapes, of an untrained run: every kind has its section, figures and controls."""

import json

import numpy as np
import pytest
from PIL import Image

from metamorph_jax.data.small_tokenizer import train_tokenizer
from metamorph_jax.errors import UserError
from metamorph_jax.metrics.writers import MetricWriter
from metamorph_jax.report.__main__ import main
from metamorph_jax.report.shapes_cases import KINDS, load_cases
from metamorph_jax.report.shapes_scoring import judge
from metamorph_jax.report.shapes_sections import TITLES
from metamorph_jax.report.shapes_sheets import _verdict
from tests.tiny_run import tiny_config, write_tiny_run
from tests.unit.report.page_reader import PageReader


def write_run(folder, **model):
    train_tokenizer(["a small red circle left of a large blue square"] * 3, 320, folder / "words")
    run = folder / "run"
    tokens = {"num_tokens": 16}
    write_tiny_run(run, tiny_config(str(folder / "words"), visual_tokens=tokens, **model))
    writer = MetricWriter(run)
    writer.write_scalars(1, {"stage": "vpit", "stage_step": 1, "text_loss": 1.0})
    writer.close()
    return run


def test_the_page_shows_every_kind(tmp_path, capsys):
    run = write_run(tmp_path, contrastive_dim=8)
    assert main([f"--run={run}", "--data=shapes", "--max_questions=2"]) == 0
    page = PageReader((run / "report.html").read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["shapes"]) == set(KINDS)
    text = (run / "report.html").read_text()
    assert all(title in text for title in TITLES.values())
    assert len(page.images) >= 6 * 2 and page.is_self_contained
    found = summary["shapes"]["text_to_image"]
    assert set(found) >= {"pictures", "ceiling", "shuffled", "pictures_by_task"}
    assert summary["text_to_image_pictures"] == found["pictures"]["all"] == 0
    assert summary["split"] == "heldout" and "measured on heldout samples" in text
    answers = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 6 * 2 and {answer["kind"] for answer in answers} == set(KINDS)
    assert "image qa accuracy" in capsys.readouterr().out
    sheets = sorted(path.stem for path in (run / "pictures").iterdir())
    assert sheets == ["shapes_image_to_image", "shapes_text_to_image", "shapes_visual_thinking"]
    with Image.open(run / "pictures/shapes_text_to_image.png") as sheet:
        pixels = np.asarray(sheet)
    (case, *_) = load_cases("text_to_image", "heldout", 2)
    (original,) = case.pictures  # below the heading, each pixel four times as large
    top, left = 19, 2
    shown = pixels[top : top + 128 : 4, left : left + 128 : 4]
    np.testing.assert_array_equal(shown, original)


def test_a_sheet_says_what_is_wrong():
    (case, *_) = load_cases("text_to_image", "heldout", 1)
    right = judge(case, "", list(case.pictures))
    assert _verdict(right) == "right"
    assert _verdict(judge(case, "", [])) == "no picture"
    empty = [np.zeros_like(case.pictures[0])]
    assert _verdict(judge(case, "", empty)).startswith("wrong: count, color, shape")


def test_settings_are_chosen_on_other_samples(tmp_path):
    run = write_run(tmp_path, contrastive_dim=8)
    questions = {}
    for split in ("heldout", "validation"):
        assert main([f"--run={run}", f"--data=shapes:{split}", "--max_questions=2"]) == 0
        assert json.loads((run / "summary.json").read_text())["split"] == split
        answers = (run / "answers.jsonl").read_text().splitlines()
        questions[split] = [json.loads(line)["question"] for line in answers]
    assert questions["heldout"] != questions["validation"]


def test_a_run_without_its_own_encoder_is_refused(tmp_path):
    with pytest.raises(UserError, match="contrastive_dim"):
        main([f"--run={write_run(tmp_path)}", "--data=shapes"])
