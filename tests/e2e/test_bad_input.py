"""Mistakes that users make: one clear message each, exit code 2, no traceback, nothing lost."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from metamorph_jax.train import main
from tests.e2e.world import make_world, read_records, train, write_records


@dataclasses.dataclass
class Mistake:
    says: tuple[str, ...]
    flags: tuple[str, ...] = ()
    spoil: Callable[[Path], None] = lambda folder: None


def spoil_records(change: Callable[[list[dict]], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        records = read_records(folder)
        change(records)
        write_records(folder, records)

    return spoil


def break_line_3(folder: Path) -> None:
    lines = (folder / "data.jsonl").read_text().splitlines()
    lines[2] = lines[2][:-5]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")


MISTAKES = {
    "misspelt key": Mistake(
        ("config.model.llm.num_layer: no such key", "did you mean num_layers"),
        flags=("--config.model.llm.num_layer=3",),
    ),
    "wrong type": Mistake(
        ("config.stages.vpit.total_steps: got 1.5 (float), expected int",),
        flags=("--config.stages.vpit.total_steps=1.5",),
    ),
    "wrong choice": Mistake(
        ("config.stages.vpit.loss.visual: got 'cosin'", "did you mean 'cosine'?"),
        flags=("--config.stages.vpit.loss.visual=cosin",),
    ),
    "batch that does not divide by accumulation": Mistake(
        ("global_batch_size=4 is no multiple of grad_accum_steps=3",),
        flags=("--config.stages.vpit.grad_accum_steps=3",),
    ),
    "mesh that does not fit the devices": Mistake(
        ("does not fit", "mesh.data, mesh.fsdp, mesh.context or mesh.tensor"),
        flags=("--config.mesh.data=3",),
    ),
    "prefix of no parameter": Mistake(
        ("config.stages.adapter.trained: 'conector'", "did you mean connector"),
        flags=("--config.stages.adapter.trained=('conector',)",),
    ),
    "prefix of no parameter in a later stage": Mistake(
        ("config.stages.vpit.trained: 'conector'",),
        flags=("--config.stages.vpit.trained=('conector',)",),
    ),
    "vocabulary smaller than the tokenizer": Mistake(
        ("config.model.llm.vocab_size=300", "320 ids"),
        flags=("--config.model.llm.vocab_size=300",),
    ),
    "missing tokenizer folder": Mistake(
        ("no such tokenizer folder",), flags=("--config.tokenizer.path=nowhere",)
    ),
    "missing tokenizer file": Mistake(
        ("tokenizer.json", "is missing"),
        spoil=lambda folder: (folder / "tokenizer" / "tokenizer.json").unlink(),
    ),
    "missing data file": Mistake(
        ("data.jsonl",), spoil=lambda folder: (folder / "data.jsonl").unlink()
    ),
    "malformed line": Mistake(("data.jsonl:3",), spoil=break_line_3),
    "more tags than images": Mistake(
        ("data.jsonl:2", "<image>"),
        spoil=spoil_records(
            lambda records: records[1]["conversations"][1].update(value="<image> and <image>")
        ),
    ),
    "image outside its folder": Mistake(
        ("data.jsonl:4", "../data.jsonl"),
        spoil=spoil_records(lambda records: records[3].update(image="../data.jsonl")),
    ),
    "missing image": Mistake(
        ("data.jsonl:", "'0.png' cannot be read"),
        spoil=lambda folder: (folder / "images" / "0.png").unlink(),
    ),
    "unreadable image": Mistake(
        ("data.jsonl:", "'0.png' cannot be decoded"),
        spoil=lambda folder: (folder / "images" / "0.png").write_text("<html>not found</html>"),
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_gets_one_clear_message(name, tmp_path, capsys):
    mistake = MISTAKES[name]
    folder = make_world(tmp_path / "world")
    mistake.spoil(folder)
    done = train(folder, *mistake.flags)
    assert done.returncode == 2, done.stdout + done.stderr
    for part in mistake.says:
        assert part in done.stderr, done.stderr
    assert done.stderr.count("error:") == 1
    assert "adapter step 10" not in done.stdout + done.stderr, "nothing was trained in vain"
    assert "Traceback" not in done.stdout + done.stderr


def test_debug_keeps_the_traceback(tmp_path):
    folder = make_world(tmp_path / "world")
    done = train(folder, "--debug", "--config.nmae=x")
    assert "Traceback" in done.stderr
    assert "UserError" in done.stderr


def test_an_image_that_breaks_in_the_middle_loses_nothing(tmp_path):
    folder = make_world(tmp_path / "world")
    train(folder, "--max_steps=10")
    saved = sorted(path.name for path in (folder / "run" / "checkpoints").iterdir())
    for image in (folder / "images").iterdir():
        image.write_bytes(image.read_bytes()[:60])
    done = train(folder)
    assert done.returncode == 2
    assert ".png" in done.stderr
    assert sorted(path.name for path in (folder / "run" / "checkpoints").iterdir()) == saved


def test_workdir_that_is_a_file(tmp_path):
    folder = make_world(tmp_path / "world")
    (folder / "run").write_text("not a folder")
    done = train(folder)
    assert done.returncode == 2
    assert f"{folder}/run" in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_flag_is_refused(tmp_path):
    done = train(make_world(tmp_path / "world"), "--wrkdir=x")
    assert done.returncode == 2
    assert "--wrkdir" in done.stderr
    assert "Traceback" not in done.stderr


def test_print_config_prints_the_resolved_recipe(tmp_path, capsys):
    folder = make_world(tmp_path / "world")
    flags = ["--print_config", "--config.seed=7"]
    assert main([f"--config={folder}/recipe.py:{folder}", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "config.seed = 7" in lines
    assert lines == sorted(lines)


def test_dry_run_shows_parameters_arithmetic_and_a_sample(tmp_path, capsys):
    folder = make_world(tmp_path / "world")
    assert main([f"--config={folder}/recipe.py:{folder}", "--dry_run"]) == 0
    output = capsys.readouterr().out
    assert "language_model/blocks/attention/query/kernel" in output
    assert "batch             4 = 1 shards x 1 accumulated x 4 rows" in output
    assert "[A thing, number 0.<|eot_id|>]" in output
    assert "<image 0.png, 4 tokens>" in output
    assert not (folder / "run").exists()


def test_dry_run_shows_the_first_sample_that_can_be_shown(tmp_path, capsys):
    folder = make_world(tmp_path)
    lines = (folder / "data.jsonl").read_text().splitlines()
    (folder / "data.jsonl").write_text("\n".join(["{", *lines[1:]]))
    flags = [f"--config.stages.{name}.data.max_bad_fraction=0.1" for name in ("adapter", "vpit")]
    assert main([f"--config={folder}/recipe.py:{folder}", "--dry_run", *flags]) == 0
    assert "Draw thing 0." in capsys.readouterr().out


def test_dry_run_of_the_8b_recipe_prints_its_true_arithmetic(capsys):
    assert main(["--config=configs/vpit_8b.py", "--dry_run"]) == 0
    output = capsys.readouterr().out
    for number in ("412,984,944", "21,504,000", "21,501,056", "6,979,584,000", "786,432"):
        assert number in output
    assert "not here yet" in output


def test_recipe_is_kept_beside_the_run(tmp_path):
    folder = make_world(tmp_path / "world")
    done = train(folder, "--max_steps=1", "--config.seed=3")
    assert done.returncode == 0, done.stderr
    assert "config.seed = 3" in (folder / "run" / "recipe.txt").read_text()
    phases = (folder / "run" / "phases.jsonl").read_text().splitlines()
    assert json.loads(phases[0])["phase"] == "train/adapter"
