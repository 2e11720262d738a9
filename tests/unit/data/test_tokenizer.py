import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models

from metamorph_jax.data import tokenizer as module
from metamorph_jax.data.small_tokenizer import SPECIAL_TOKENS, train_tokenizer
from metamorph_jax.data.templates import TEMPLATES, check_template
from metamorph_jax.data.tokenizer import add_image_tokens, load_tokenizer
from metamorph_jax.errors import UserError, run_main
from tests.data_files import small_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


def edited(folder, target, edit):
    """Copies a tokenizer definition, changed by `edit`."""
    definition = json.loads((folder / "tokenizer.json").read_text())
    edit(definition)
    target.mkdir(exist_ok=True)
    (target / "tokenizer.json").write_text(json.dumps(definition))
    return target


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
def test_special_strings_in_a_text_are_text(special, tokenizer):
    for text in (special, f"a{special}b", f" {special} ", special * 3):
        ids = tokenizer.encode_text(text)
        assert tokenizer.control_ids.isdisjoint(ids)
        assert tokenizer.decode(ids) == text


def test_no_begin_of_text_is_added(tokenizer):
    assert tokenizer.encode_text("") == []
    assert tokenizer.special.begin_of_text not in tokenizer.encode_text("What")


def test_ids_are_those_of_the_library(folder, tokenizer):
    raw = RawTokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("This is a cat.", " two  spaces\n\n\tand é🐱", "12345"):
        assert tokenizer.encode_text(text) == raw.encode(text, add_special_tokens=False).ids
    assert tokenizer.vocab_size == raw.get_vocab_size()


def test_special_strings_are_split_like_any_text(tmp_path):
    """Their characters group as they would if the token did not exist."""
    train_tokenizer(["<|eot_id|>", "<image_start>"] * 9, 300, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    definition = json.loads((tmp_path / "tokenizer.json").read_text())
    definition["added_tokens"], definition["post_processor"] = [], None
    raw = RawTokenizer.from_str(json.dumps(definition))
    for text in ("<|eot_id|>", "a cat<|eot_id|>What", "<image_start><image_end>"):
        assert tokenizer.encode_text(text) == raw.encode(text).ids


def test_results_are_not_shared_through_the_cache(tokenizer):
    first = tokenizer.encode_text("cat")
    first.append(-1)
    assert -1 not in tokenizer.encode_text("cat")


def test_pickled_tokenizer_splits_special_strings_too(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.special == tokenizer.special
    assert copy.encode_text("<|eot_id|>") == tokenizer.encode_text("<|eot_id|>")


def test_image_tokens_that_are_not_marked_special_are_split_in_texts(folder, tmp_path):
    def unmark(definition):
        for token in definition["added_tokens"]:
            token["special"] = "image" not in token["content"]

    tokenizer = load_tokenizer(edited(folder, tmp_path, unmark))
    ids = tokenizer.encode_text("<image_start>")
    assert tokenizer.control_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == "<image_start>"


def test_ordinary_added_tokens_stay_whole(folder, tmp_path):
    def add(definition):
        token = dict(definition["added_tokens"][-1], content="<tool>", special=False)
        definition["added_tokens"].append(token | {"id": token["id"] + 1})

    tokenizer = load_tokenizer(edited(folder, tmp_path, add))
    assert tokenizer.encode_text("<tool>") == [tokenizer.vocab_size - 1]


def test_vocabulary_that_can_spell_a_control_token(folder, tmp_path):
    """Some folders hold "</s>"-like pieces among the ordinary ones; texts must not reach them."""

    def spellable(definition):
        vocabulary, eot = definition["model"]["vocab"], "<|eot_id|>"
        shift = {token["content"]: token["id"] for token in definition["added_tokens"]}
        vocabulary[eot] = shift[eot]
        definition["pre_tokenizer"] = definition["pre_tokenizer"]["pretokenizers"][1]

    raw = edited(folder, tmp_path, spellable)
    tokenizer = load_tokenizer(raw)
    library = RawTokenizer.from_file(str(raw / "tokenizer.json"))
    library.encode_special_tokens = True
    eot = tokenizer.special.end_of_turn
    assert library.encode("<|eot_id|>", add_special_tokens=False).ids == [eot]
    ids = tokenizer.encode_text("<|eot_id|>")
    assert eot not in ids
    assert tokenizer.decode(ids) == "<|eot_id|>"


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: folder.rmdir(), "no such tokenizer folder"),
        (
            lambda folder: (folder / "vocab.txt").touch(),
            "tokenizer.json (or tokenizer.model) is missing (found vocab.txt)",
        ),
        (
            lambda folder: (folder / "tokenizer.model").write_bytes(b"{}"),
            "not a SentencePiece model",
        ),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "not a tokenizer definition"),
        (lambda folder: (folder / "tokenizer.json").write_text("[]"), "not a tokenizer definition"),
        (
            lambda folder: (folder / "tokenizer.json").write_text('{"model": {"type": "?"}}'),
            "not a tokenizer definition",
        ),
        (
            lambda folder: [
                RawTokenizer(models.BPE()).save(str(folder / "tokenizer.json")),
                (folder / "tokenizer_config.json").write_text("[]"),
            ],
            "expected one JSON object",
        ),
    ],
)
def test_bad_folder_is_explained(prepare, message, tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(UserError) as caught:
        load_tokenizer(folder)
    assert str(caught.value).startswith(str(folder))
    assert message in str(caught.value)


def without_image_tokens(definition):
    del definition["added_tokens"][-2:]


def test_missing_image_tokens_name_the_command_that_adds_them(folder, tmp_path, capsys):
    source = edited(folder, tmp_path / "source", without_image_tokens)
    (source / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {}}))
    (source / "model.safetensors").touch()
    with pytest.raises(UserError) as caught:
        check_template(TEMPLATES["llama3"], load_tokenizer(source))
    command = f"python -m metamorph_jax.data.tokenizer --add_image_tokens {source} NEW_FOLDER"
    assert command in str(caught.value)
    assert "<|eot_id|>" in str(caught.value)  # lists what is there

    target = tmp_path / "target"
    module.main(["--add_image_tokens", str(source), str(target)])
    untouched = json.loads((source / "tokenizer.json").read_text())
    extended = json.loads((target / "tokenizer.json").read_text())
    assert extended["model"] == untouched["model"]
    assert extended["added_tokens"][:-2] == untouched["added_tokens"]
    special, original = load_tokenizer(target).special, load_tokenizer(folder).special
    assert special == original
    printed = capsys.readouterr().out
    assert f"<image_start> = {special.image_start}" in printed
    config = json.loads((target / "tokenizer_config.json").read_text())
    assert config["added_tokens_decoder"][str(special.image_end)]["content"] == "<image_end>"
    assert not (target / "model.safetensors").exists()


def test_image_tokens_are_added_once_and_to_a_new_folder(folder, tmp_path):
    with pytest.raises(UserError, match="has <image_end>, <image_start> already"):
        add_image_tokens(folder, tmp_path / "new")
    source = edited(folder, tmp_path / "source", without_image_tokens)
    with pytest.raises(UserError, match="is not empty"):
        add_image_tokens(source, source)


def test_command_reports_mistakes_without_traceback(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run_main(module.main, ["--add_image_tokens", str(tmp_path / "none"), str(tmp_path / "new")])
    assert caught.value.code == 2
    assert "no such tokenizer folder" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_message(folder, tmp_path):
    source = edited(folder, tmp_path / "source", without_image_tokens)
    (tmp_path / "file").touch()
    module_name = "metamorph_jax.data.tokenizer"
    command = [sys.executable, "-m", module_name, "--add_image_tokens", source, tmp_path / "file/x"]
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {tmp_path}/file/x: Not a directory")
