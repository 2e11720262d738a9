"""The command line: what it writes, what it prints, and what it refuses."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from metamorph_jax.checkpoints.manifest import fingerprint
from metamorph_jax.decoding.features import Encoder
from metamorph_jax.errors import UserError
from metamorph_jax.generate import main
from tests.drawing_run import write_drawing_run, write_visualizer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns a run whose model answers " cat<image>." to everything."""
    return write_drawing_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def visualizer(run, tmp_path_factory):
    """Returns the folder of an untrained visualizer of the run's encoder."""
    return write_visualizer(tmp_path_factory.mktemp("visualizer"), run)


def ask(run, out, *more, prompt="Draw a cat."):
    flags = [f"--checkpoint={run}", f"--out={out}", f"--prompt={prompt}", "--max_new_tokens=32"]
    return main([*flags, *map(str, more)])


def test_answer_and_visual_tokens_are_written(run, tmp_path, capsys):
    out = tmp_path / "new" / "answer"
    assert ask(run, out) == 0
    answer = json.loads((out / "answer.json").read_text("utf-8"))
    assert answer["prompt"] == "Draw a cat."
    assert answer["text"] == " cat<image>."
    assert answer["images"] == [{"first_step": 2, "num_tokens": 4}]
    assert answer["steps"][2:6] == [-1] * 4
    assert answer["ids"] == [step for step in answer["steps"] if step >= 0]
    assert (answer["finish"], answer["well_formed"]) == ("end_of_turn", True)
    assert answer["sampling"]["max_new_tokens"] == 32
    with safe_open(out / "visual_tokens.safetensors", framework="numpy") as file:
        tokens, metadata = file.get_tensor("visual_tokens"), file.metadata()
    assert tokens.shape == (1, 4, 8)
    assert tokens.dtype == np.float32
    assert (metadata["num_images"], metadata["prompt"]) == ("1", "Draw a cat.")
    assert metadata["checkpoint_fingerprint"] == fingerprint(run / "checkpoints/00000004")
    assert metadata["encoder_fingerprint"] == Encoder.load(run).fingerprint
    printed = capsys.readouterr().out
    assert " cat<image>." in printed
    assert "no visualizer" in printed
    assert not list(out.glob("*.png"))


def test_pictures_are_painted(run, visualizer, tmp_path, capsys):
    assert ask(run, tmp_path, f"--visualizer={visualizer}") == 0
    assert str(tmp_path / "image_00000.png") in capsys.readouterr().out
    assert Image.open(tmp_path / "image_00000.png").size == (8, 8)


def test_painting_can_be_left_to_others(run, visualizer, tmp_path, capsys):
    assert ask(run, tmp_path, f"--visualizer={visualizer}", "--tokens_only") == 0
    assert str(tmp_path / "visual_tokens.safetensors") in capsys.readouterr().out
    assert not list(tmp_path.glob("*.png"))


def test_pngs_say_what_was_asked(run, visualizer, tmp_path):
    assert ask(run, tmp_path, f"--visualizer={visualizer}") == 0
    text = Image.open(tmp_path / "image_00000.png").text
    assert text["prompt"] == "Draw a cat."
    assert text["checkpoint_fingerprint"] == fingerprint(run / "checkpoints/00000004")


def test_the_runs_own_visualizer_is_found(run, visualizer, tmp_path, capsys):
    (run / "visualizer").symlink_to(visualizer)
    try:
        assert ask(run / "checkpoints", tmp_path) == 0
    finally:
        (run / "visualizer").unlink()
    assert (tmp_path / "image_00000.png").exists()
    assert "no visualizer" not in capsys.readouterr().out


def test_images_go_in(run, tmp_path):
    for index in range(2):
        Image.new("RGB", (9, 7), (index, 0, 0)).save(tmp_path / f"{index}.png")
    files = [f"--image={tmp_path / f'{index}.png'}" for index in range(2)]
    assert ask(run, tmp_path, *files, prompt="<image> and <image>") == 0
    answer = json.loads((tmp_path / "answer.json").read_text("utf-8"))
    assert answer["prompt_images"] == [str(tmp_path / f"{index}.png") for index in range(2)]


def test_sampling_flags_arrive(run, tmp_path):
    flags = ["--temperature=0.5", "--top_p=0.9", "--seed=7"]
    assert ask(run, tmp_path, *flags) == 0
    sampling = json.loads((tmp_path / "answer.json").read_text("utf-8"))["sampling"]
    assert (sampling["temperature"], sampling["top_p"], sampling["seed"]) == (0.5, 0.9, 7)


@pytest.mark.parametrize(
    ("flags", "prompt", "message"),
    [
        ([], "cat " * 80, "leaves none of model.llm.max_seq_len=64"),
        ([], "<image>", "1 <image> tag.* 0 image"),
        (["--image=no/such.png"], "?", "'no/such.png' does not exist"),
        (["--image=" + __file__], "?", "test_generate.py' cannot be decoded"),
        (["--visualizer=no/such"], "?", "--visualizer=no/such: no visualizer is there"),
        (["--top_p=0"], "?", "top_p=0.0"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(run, tmp_path, flags, prompt, message):
    with pytest.raises(UserError, match=message):
        ask(run, tmp_path / "out", *flags, prompt=prompt)
    assert not (tmp_path / "out").exists()


def test_out_that_is_a_file_is_refused(run, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match=r"--out=.*could not be written"):
        ask(run, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_missing_checkpoint_ends_without_traceback(tmp_path):
    flags = ["--checkpoint=no/run", "--prompt=Hi", f"--out={tmp_path}"]
    command = [sys.executable, "-m", "metamorph_jax.generate", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no/run: there is no checkpoint; expected the folder")
    assert "Traceback" not in done.stderr


def test_help_needs_no_jax():
    code = (
        "import sys, metamorph_jax.generate as front\n"
        "try: front.main(['--help'])\n"
        "except SystemExit: sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--prompt" in done.stdout
