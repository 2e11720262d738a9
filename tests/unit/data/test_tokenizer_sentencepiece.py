"""SentencePiece folders: spaces where the slow tokenizer put them, and no control ids in texts."""

import json
import pickle
import shutil

import pytest

from metamorph_jax.data.tokenizer import add_image_tokens, load_tokenizer
from metamorph_jax.errors import UserError
from tests.golden_data import LLAVA

FOLDERS = LLAVA / "tokenizers"


@pytest.fixture(scope="module", params=["sp_legacy", "sp_nonlegacy"])
def tokenizer(request):
    return load_tokenizer(FOLDERS / request.param)


def pieces(tokenizer, texts, at_start):
    """Returns [(piece, number of its text)]."""
    inner = tokenizer._inner
    return [(inner.id_to_piece(i), n) for i, n in tokenizer.encode_run(texts, at_start)]


def test_texts_come_back_whole(tokenizer):
    for text in ("", " ", "a", "  two  spaces\n\n\tand é🐱", "</s><s><unk> x", "日本 ½"):
        ids = tokenizer.encode_text(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.control_ids.isdisjoint(ids)


def test_special_tokens_are_those_of_the_model(tokenizer):
    special = tokenizer.special
    assert (special.begin_of_text, special.end_of_text, special.pad) == (1, 2, 0)
    assert special.image_start is None and tokenizer.adds_begin
    assert tokenizer.control_ids == {0, 1, 2}


def test_only_legacy_puts_a_space_behind_a_control_token():
    legacy, later = (load_tokenizer(FOLDERS / name) for name in ("sp_legacy", "sp_nonlegacy"))
    for at_start in (True, False):
        assert pieces(legacy, ["USER"], at_start) == [("▁US", 0), ("ER", 0)]
    assert pieces(later, ["USER"], True) == [("▁US", 0), ("ER", 0)]
    assert pieces(later, ["USER"], False) == [("USER", 0)]


def test_a_token_belongs_to_the_text_it_ends_in(tokenizer):
    found = pieces(tokenizer, ["Q:", " A cat", "", " 🐱"], at_start=True)
    assert next(piece for piece, owner in found if owner == 1) == "▁A"
    assert [owner for _, owner in found] == sorted(owner for _, owner in found)
    assert {owner for _, owner in found} == {0, 1, 3}
    assert [owner for piece, owner in found if piece.startswith("<0x")][-4:] == [3] * 4
    joined = tokenizer.encode_text("Q: A cat 🐱")
    assert [id_ for id_, _ in tokenizer.encode_run(["Q:", " A cat", "", " 🐱"], True)] == joined


def test_pickled_tokenizer_is_the_same(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.special == tokenizer.special and copy.fingerprint == tokenizer.fingerprint
    assert copy.encode_text("USER: a</s>") == tokenizer.encode_text("USER: a</s>")


def test_fingerprints_tell_tokenizers_apart():
    names = ("sp_legacy", "sp_nonlegacy", "sp_chatml_legacy", "bpe_llama3", "bpe_llama3_nobos")
    found = {load_tokenizer(FOLDERS / name).fingerprint for name in names}
    assert len(found) == len(names)


def test_image_tokens_can_be_added(tmp_path):
    found = add_image_tokens(FOLDERS / "sp_legacy", tmp_path / "new")
    tokenizer = load_tokenizer(tmp_path / "new")
    assert found == {"<image_start>": 640, "<image_end>": 641}
    assert tokenizer.image_token_ids("a test") == (640, 641)
    assert tokenizer.vocab_size == 642
    assert tokenizer.control_ids.isdisjoint(tokenizer.encode_text("<image_start>"))


def test_a_conversion_is_read_by_its_model(tmp_path):
    """A tokenizer.json that puts a space in front of every text would put one into each turn."""
    folder = tmp_path / "both"
    shutil.copytree(FOLDERS / "sp_legacy", folder)
    definition = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Prepend", "prepend": "▁"},
        "model": {"type": "BPE", "vocab": {"▁": 0, "a": 1, "▁a": 2}, "merges": [["▁", "a"]]},
    }
    (folder / "tokenizer.json").write_text(json.dumps(definition), "utf-8")
    assert load_tokenizer(folder).vocab_size == 640
    (folder / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.model is needed beside it"):
        load_tokenizer(folder)
