import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from metamorph_jax.config.schema_run import DataConfig, SourceConfig
from metamorph_jax.data import digits
from metamorph_jax.data.digits_texts import WORDS, Description, question, request
from metamorph_jax.data.pipeline import TrainingData
from metamorph_jax.data.templates import TEMPLATES
from metamorph_jax.data.tokenizer import load_tokenizer
from metamorph_jax.errors import UserError, run_main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    digits.write_digits(folder)
    return folder


def lines(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def tree(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_same_bytes_again(folder, tmp_path):
    digits.write_digits(tmp_path)
    assert tree(tmp_path) == tree(folder)


def test_splits_do_not_touch():
    labels = load_digits().target
    train, test = digits.split(labels, "test")
    assert (len(train), len(test)) == (1437, 360)
    assert set(train) | set(test) == set(range(1797))
    inner, validation = digits.split(labels, "validation")
    assert (len(inner), len(validation)) == (1197, 240)
    assert set(inner) | set(validation) == set(train)
    for part in (train, test, inner, validation):
        share = np.bincount(labels[part]) / len(part)
        np.testing.assert_allclose(share, np.bincount(labels) / 1797, atol=0.01)


def images_of(records):
    found = set()
    for record in records:
        image = record["image"]
        found |= set(image if isinstance(image, list) else [image])
    return found


def test_no_heldout_scan_is_trained_on(folder):
    heldout = images_of(lines(folder, "heldout_images"))
    assert len(heldout) == 360
    assert images_of(lines(folder, "heldout_questions")) == heldout
    for name in ("understanding", "generation", "edits", "captions", "train_images"):
        assert images_of(lines(folder, name)) == images_of(lines(folder, "train_images"))
        assert not images_of(lines(folder, name)) & heldout


def test_images_are_the_scans(folder):
    scans = load_digits()
    for record in lines(folder, "train_images")[::200]:
        index = int(record["image"][len("images/") : -len(".png")])
        with Image.open(folder / record["image"]) as image:
            assert (image.size, image.mode) == ((32, 32), "RGB")
            small = digits.shrink(np.asarray(image))
        distances = ((scans.images / 16 - small) ** 2).sum(axis=(1, 2))
        assert distances.argmin() == index  # enlarged and shrunk, it is still nearest to itself
        assert record["digit"] == scans.target[index]
        assert record["ink"] == pytest.approx(scans.images[index].mean() / 16)


def bar(lean):
    """A stroke that moves `lean` pixels to the right from bottom to top, on average."""
    image = np.zeros((8, 8))
    for row in range(8):
        image[row, 3 + round(lean * (3.5 - row) / 7)] = 1
    return image


def test_measure():
    assert digits.measure(np.zeros((8, 8))) == (0.0, 0.0)
    ink, slant = digits.measure(bar(0))
    assert (ink, slant) == (pytest.approx(1 / 8), pytest.approx(0))
    right, left = digits.measure(bar(6))[1], digits.measure(bar(-6))[1]
    assert right == pytest.approx(-left) and right == pytest.approx(6 / 7, abs=0.1)
    assert digits.measure(bar(6) / 2)[1] == pytest.approx(right)
    flat = np.zeros((8, 8))
    flat[3] = 1
    assert digits.measure(flat)[1] == 0


def test_style_words_are_thirds_of_the_class(folder):
    records = lines(folder, "train_images")
    for digit in range(10):
        peers = [record for record in records if record["digit"] == digit]
        for word, value in (("thickness", "ink"), ("lean", "slant")):
            groups = {}
            for peer in peers:
                groups.setdefault(peer[word], []).append(peer[value])
            low, high = {"ink": ("thin", "bold"), "slant": ("leaning left", "leaning right")}[value]
            assert max(groups[low]) < min(groups[""]) <= max(groups[""]) < min(groups[high])
            for group in groups.values():
                assert len(group) == pytest.approx(len(peers) / 3, abs=len(peers) * 0.05 + 1)


def answer(record):
    return record["conversations"][1]["value"]


def asked(record):
    return record["conversations"][0]["value"]


def test_answers_are_right(folder):
    about = {record["image"]: record for record in lines(folder, "train_images")}
    for record in lines(folder, "understanding"):
        scan, said, text = about[record["image"]], answer(record).lower(), asked(record).lower()
        digit = scan["digit"]
        assert text.startswith("<image>\n")
        if "odd" in text:
            assert ("odd" in said, "even" in said) == (digit % 2 == 1, digit % 2 == 0)
        elif "larger" in text:
            assert said == ("yes." if digit > 5 else "no.")
        elif "thick" in text:
            assert scan["thickness"]
            assert ("thick" in said) == (scan["thickness"] == "bold")
            assert ("thin" in said) == (scan["thickness"] == "thin")
        else:
            assert [word for word in WORDS if word in said.rstrip(".").split()] == [WORDS[digit]]


def test_requests_are_answered_by_a_scan_they_describe(folder):
    about = {record["image"]: record for record in lines(folder, "train_images")}
    styled = 0
    for record in lines(folder, "generation"):
        scan, words = about[record["image"]], asked(record).rstrip(".").split()
        assert WORDS[scan["digit"]] in words
        assert answer(record).count("<image>") == 1
        style = [word for word in words if word in ("thin", "bold", "leaning")]
        if style:
            text = asked(record)
            assert scan["thickness"] in text and scan["lean"] in text
            styled += 1
    # 70 % of the requests use style words, if their scan has any (8 in 9 have).
    assert 0.7 * 8 / 9 == pytest.approx(styled / len(lines(folder, "generation")), abs=0.05)


def test_edits_show_the_next_digit(folder):
    about = {record["image"]: record for record in lines(folder, "train_images")}
    for record in lines(folder, "edits"):
        before, after = (about[image]["digit"] for image in record["image"])
        assert after == (before + 1) % 10
        assert asked(record).count("<image>") == answer(record).count("<image>") == 1


def test_captions_come_rich_and_plain(folder):
    about = {record["image"]: record for record in lines(folder, "train_images")}
    rich, plain = lines(folder, "captions")[::2], lines(folder, "captions")[1::2]
    for first, second in zip(rich, plain, strict=True):
        scan = about[first["image"]]
        assert first["image"] == second["image"]
        assert scan["thickness"] in answer(first) and scan["lean"] in answer(first)
        assert answer(second) == f"a handwritten {WORDS[scan['digit']]}"


def test_heldout_answers_hold_their_label(folder):
    records = lines(folder, "heldout_questions")
    about = {record["image"]: record for record in lines(folder, "heldout_images")}
    kinds = [record["kind"] for record in records]
    thick = sum(bool(record["thickness"]) for record in about.values())
    assert [kinds.count(kind) for kind in ("digit", "parity", "larger")] == [360] * 3
    assert kinds.count("thickness") == thick
    for record in records:
        assert record["label"] in answer(record).lower()
        assert record["digit"] == about[record["image"]]["digit"]


def test_prompts(folder):
    prompts = lines(folder, "prompts")
    for digit in range(10):
        mine = [prompt for prompt in prompts if prompt["digit"] == digit]
        texts = [prompt["prompt"] for prompt in mine if prompt["kind"] == "class"]
        assert len(set(texts)) == 10
        combinations = {
            (prompt["thickness"], prompt["lean"]) for prompt in mine if prompt["kind"] == "styled"
        }
        assert len(combinations) == 8
        assert all(WORDS[digit] in prompt["prompt"] for prompt in mine)
    trained = {asked(record) for record in lines(folder, "generation")}
    assert {"Generate an image of a thin three."} <= trained


def test_words():
    description = Description(8, "bold", "leaning left")
    assert description.styled == "a bold eight leaning left"
    assert description.plain == "an eight"
    assert question(description, "digit", 0) == (
        "<image>\nWhich digit is this?",
        "This is an eight.",
    )
    assert question(description, "larger", 0)[1] == "Yes."
    assert "thickness" not in Description(8).labels
    assert "eight" in request(description, random.Random(0))[0]


def test_examples_are_short_and_words_are_single_tokens(folder):
    tokenizer = load_tokenizer(folder / "tokenizer")
    assert 320 <= tokenizer.vocab_size <= 512
    for word in (*WORDS, "thin", "bold", "leaning", "digit", "image"):
        assert len(tokenizer.encode_text(f" {word}")) == 1
    names = ("understanding", "generation", "edits")
    sources = tuple(SourceConfig(path=str(folder / f"{name}.jsonl")) for name in names)
    data = TrainingData(
        DataConfig(sources=sources, max_seq_len=64, max_images=2),
        tokenizer,
        TEMPLATES["metamorph_llama3"],
        image_size=32,
        num_visual_tokens=16,
        seed=0,
        stage_name="vpit",
        global_batch_size=4,
    )
    assert data.describe()["cut_examples"] == 0
    assert max(len(data.example(index)) for index in range(data.describe()["examples"])) <= 60
    examples = map(data.example, range(data.describe()["examples"]))
    assert len({image for example in examples for image in example.images}) == 1437
    assert not data.build(0).findings


def test_command_and_validation_split(tmp_path, capsys):
    digits.main(["--out", str(tmp_path), "--holdout=validation"])
    assert "heldout_images.jsonl: 240 records" in capsys.readouterr().out
    assert len(lines(tmp_path, "train_images")) == 1197
    assert len(list((tmp_path / "images").iterdir())) == 1437
    readme = (tmp_path / "README.md").read_text()
    assert "1197 training scans and 240 held-out scans" in readme and "CC BY 4.0" in readme


def test_missing_scikit_learn_is_explained(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="install the `report` extra"):
        digits.load_scans()
    with pytest.raises(SystemExit) as caught:
        run_main(digits.main, ["--out", str(tmp_path)])
    assert caught.value.code == 2
    assert "scikit-learn" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "metamorph_jax.data.digits", "--out", str(tmp_path / "file/x")]
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {tmp_path}/file/x") and "Not a directory" in done.stderr


def test_records_replace_a_file_only_when_complete(tmp_path, monkeypatch):
    def half_written(path, text, encoding):
        path.write_bytes(text.encode(encoding)[:4])
        raise OSError("No space left on device")

    file = tmp_path / "a.jsonl"
    digits._write_jsonl(file, [{"id": 1}, {"id": 2}])
    assert file.read_text() == '{"id": 1}\n{"id": 2}\n'
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(Path, "write_text", half_written)
        digits._write_jsonl(file, [{"id": 3}])
    assert file.read_text() == '{"id": 1}\n{"id": 2}\n'
    assert list(tmp_path.iterdir()) == [file]
