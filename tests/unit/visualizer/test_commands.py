"""The commands: flags, messages, exit codes, and how little `--help` imports."""

import subprocess
import sys

import pytest

from metamorph_jax.errors import run_main
from metamorph_jax.visualizer import paint, reconstruct, train
from tests.visualizer_files import RECIPE, write_data


@pytest.fixture
def arguments(tmp_path):
    sources = write_data(tmp_path)
    (tmp_path / "recipe.py").write_text(RECIPE)
    return {
        "config": tmp_path / "recipe.py",
        "features": sources.features[0],
        "image_root": sources.image_root,
        "out": tmp_path / "run",
    }


def flags(arguments, *more):
    return [f"--{name}={value}" for name, value in arguments.items()] + list(more)


def fails(main, argv, capsys):
    """Returns the message of a command that must exit with code 2."""
    with pytest.raises(SystemExit) as left:
        run_main(main, argv)
    assert left.value.code == 2
    return capsys.readouterr().err


def test_train_then_paint(arguments, tmp_path, capsys):
    assert train.main(flags(arguments, "--max_steps=2", "--config.training.batch_size=2")) == 0
    painted = {
        "visualizer": arguments["out"],
        "tokens": tmp_path / "visual_tokens.safetensors",
        "out": tmp_path / "pictures",
    }
    assert paint.main(flags(painted, "--steps=2", "--guidance=1.5", "--seeds=3")) == 0
    assert "3 pictures and contact_sheet.png" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    pictures = [f"image_0000{index}.png" for index in range(3)]
    assert names == ["contact_sheet.png", *pictures, "pictures.json"]


def test_recipe_mistakes_are_told_at_once(arguments, capsys):
    mistakes = ["--config.training.batch_sise=3", "--config.model.token_dim=wide"]
    message = fails(train.main, flags(arguments, *mistakes), capsys)
    assert "2 problems in the recipe" in message
    assert "config.training.batch_sise: no such key; did you mean batch_size" in message
    assert "config.model.token_dim: got 'wide' (str), expected int" in message


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"features": "nowhere.safetensors"}, "nowhere.safetensors: no such file"),
        ({"image_root": "nowhere"}, "cannot be read, No such file"),
        ({"config": "nowhere.py"}, "nowhere.py is no file"),
        ({"config.model.token_dim": 7}, "4 visual tokens of width 6"),
    ],
)
def test_bad_files_are_told_without_traceback(arguments, change, told, capsys):
    message = fails(train.main, flags(arguments | change), capsys)
    assert told in message
    assert "Traceback" not in message


def test_paint_without_a_visualizer_is_told(tmp_path, capsys):
    given = {"visualizer": tmp_path, "tokens": tmp_path / "t", "out": tmp_path / "o"}
    assert "no visualizer here" in fails(paint.main, flags(given), capsys)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "give --tokens, or --checkpoint and --prompt"),
        (["--tokens=a", "--checkpoint=b"], "give --tokens, or"),
        (["--checkpoint=b"], "--checkpoint and --prompt go together"),
        (["--tokens=a"], "--tokens needs --visualizer"),
        (["--tokens=a", "--visualizer=b", "--guidance=1;2"], "'1;2': numbers with commas"),
        (["--tokens=a", "--visualizer=b", "--dtype=int8"], "invalid choice: 'int8'"),
    ],
)
def test_paint_flags_that_do_not_fit_are_told(given, told, tmp_path, capsys):
    assert told in fails(paint.main, [f"--out={tmp_path}", *given], capsys)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "give --checkpoint, --records and --image_root, or --predictions"),
        (["--checkpoint=a", "--records=b"], "--image_root is needed"),
        (["--predictions=a", "--out=b"], "--visualizer is needed"),
        (["--checkpoint=a", "--records=b", "--image_root=c"], "a has no visualizer"),
    ],
)
def test_reconstruct_flags_that_do_not_fit_are_told(given, told, capsys):
    assert told in fails(reconstruct.main, given, capsys)


@pytest.mark.parametrize("module", ["train", "paint", "reconstruct"])
def test_commands_wait_neither_for_torch_nor_for_jax(module):
    code = (
        f"import sys, metamorph_jax.visualizer.{module};"
        "sys.exit(' '.join({'torch', 'jax', 'diffusers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_work_itself_never_imports_jax():
    code = (
        "import sys, metamorph_jax.visualizer.loop, metamorph_jax.visualizer.painter;"
        "sys.exit(' '.join({'jax', 'flax', 'tensorflow'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
