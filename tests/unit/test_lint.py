"""The front door `lint`: flags, exit codes, and what is written where."""

import json
import os
from pathlib import Path

import pytest

from metamorph_jax import lint as lint_module
from metamorph_jax.errors import UserError
from metamorph_jax.lint import main
from tests.data_files import small_tokenizer, write_images, write_jsonl


def talk(answer: str, image: str | None = None) -> dict:
    question = "<image>\nWhat is this?" if image else "What?"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **({"image": image} if image else {})}


@pytest.fixture
def file(tmp_path) -> Path:
    """Ten records, one of them without its image."""
    write_images(tmp_path / "images", 3, size=9)
    records = [talk(f"Thing {number}.", f"{number % 3}.png") for number in range(9)]
    return write_jsonl(tmp_path / "talk.jsonl", [*records, talk("Gone.", "gone.png")])


def lint(file: Path, *flags: str) -> int:
    folder = file.parent
    return main([str(file), f"--image_root={folder}/images", f"--out={folder}/out", *flags])


@pytest.mark.parametrize(("allowed", "code"), [("0", 1), ("0.09", 1), ("0.1", 0), ("1", 0)])
def test_the_exit_code_follows_the_threshold(file, capsys, allowed, code):
    assert lint(file, f"--max_problem_fraction={allowed}") == code
    printed = capsys.readouterr().out
    assert f"{file}:10: error: image 'gone.png' cannot be read" in printed
    assert "10.00% of a source's records are in error" in printed
    assert ("verdict  good" if code == 0 else "verdict  bad") in printed


def test_findings_and_page_are_written(file):
    lint(file)
    (line,) = (file.parent / "out" / "findings.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["where"] == f"{file}:10"
    page = (file.parent / "out" / "lint.html").read_text("utf-8")
    assert "missing_media" in page and "Thing" in page


def test_without_media_nothing_is_opened(file, capsys):
    assert lint(file, "--media=none") == 0
    assert "unknown  missing_media" in capsys.readouterr().out


def test_a_tokenizer_counts_and_plans(file, capsys):
    small_tokenizer(file.parent / "tokenizer")
    lint(file, f"--tokenizer={file.parent}/tokenizer", "--template=llama3")
    printed = capsys.readouterr().out
    assert "image tokens         min 64" in printed
    assert "of their tokens used" in printed
    assert printed.count("unknown") == 1  # killed_worker


def test_kind_and_part(file, capsys):
    assert lint(file, "--kind=text_to_image", "--max_records=4") == 1
    printed = capsys.readouterr().out
    assert "4 of 10 records" in printed
    assert "no answer holds an image" in printed


def test_only_some_findings_of_a_reason_are_printed(file, capsys):
    lint(file, "--kind=text_to_image")
    printed = capsys.readouterr().out
    assert printed.count("no answer holds an image") == 5
    assert "... and 5 more [wrong_conversation]" in printed
    assert len((file.parent / "out" / "findings.jsonl").read_text().splitlines()) == 10


def test_file_names_that_are_no_unicode(tmp_path, capfdbinary):
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    write_images(folder / "images", 1, size=9)
    file = write_jsonl(folder / os.fsdecode(b"\xfe.jsonl"), [talk("A.", "0.png"), talk("B.", "1")])
    assert lint(file, "--media=headers") == 1
    printed = capfdbinary.readouterr().out.decode("utf-8")
    assert r"\udcff/\udcfe.jsonl:2: error: image '1'" in printed
    assert r"\udcfe.jsonl" in (folder / "out" / "lint.html").read_text("utf-8")
    (line,) = (folder / "out" / "findings.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["where"] == f"{file}:2"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "name either a recipe"),
        (["a.jsonl", "--config=b.py"], "name either a recipe"),
        (["--config=b.py", "--tokenizer=t"], "--tokenizer: the recipe says so"),
        (["--config=b.py", "--kind=image_qa"], "--kind: the recipe says so"),
        (["a.jsonl", "--config.seed=1"], "none is named with --config"),
        (["a.jsonl", "--max_records=0"], "--max_records=0"),
        (["a.jsonl", "--max_problem_fraction=1.5"], "--max_problem_fraction=1.5"),
        (["a.jsonl", "--workers=-1"], "--workers=-1"),
        (["a.jsonl", "--kind=qa"], "--kind=qa: unknown; expected one of conversation"),
        (["a.jsonl", "--template=x"], "--template=x: unknown; expected one of metamorph_llama3"),
        (["nowhere.jsonl"], "nowhere.jsonl: no such data file"),
    ],
)
def test_mistakes_are_explained(tmp_path, monkeypatch, flags, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        main(flags)


def test_a_recipe_is_read_with_overrides(tmp_path, file, capsys):
    small_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "captions.jsonl").write_text(file.read_text("utf-8").splitlines()[0])
    recipe = Path(__file__).resolve().parents[2] / "configs" / "digits.py"
    sources = f"--config.stages.vpit.data.sources.0.path={file}"
    for name in ("understanding", "generation", "edits"):
        (tmp_path / f"{name}.jsonl").write_text((tmp_path / "captions.jsonl").read_text())
    (tmp_path / "0.png").write_bytes((tmp_path / "images" / "0.png").read_bytes())
    root = f"--config.stages.vpit.data.sources.0.image_root={tmp_path}/images"
    steps = "--config.stages.vpit.total_steps=450"
    code = main([f"--config={recipe}:{tmp_path}", sources, root, steps, f"--out={tmp_path}/out"])
    printed = capsys.readouterr().out
    assert code == 1
    assert printed.count("stage ") >= 3
    assert f"{file}:10: error" in printed
    assert "450 steps" in printed


def test_a_recipe_of_a_clip_tower_pads_with_its_mean(tmp_path):
    small_tokenizer(tmp_path / "tokenizer")
    recipe = Path(__file__).resolve().parents[2] / "configs" / "digits.py"
    flags, overrides = lint_module._parse(
        [f"--config={recipe}:{tmp_path}", "--config.model.vision.family=clip"]
    )
    _, stages = lint_module._from_recipe(flags, overrides)
    assert {stage.processor for stage in stages} == {"clip"}
    assert {stage.pad_color for stage in stages} == {(122, 116, 104)}
