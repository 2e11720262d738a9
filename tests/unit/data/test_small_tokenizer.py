import pytest
from transformers import AutoTokenizer

from metamorph_jax.data.small_tokenizer import LLAMA3_SPLIT, SPECIAL_TOKENS, train_tokenizer
from metamorph_jax.data.tokenizer import load_tokenizer
from tests.data_files import WORDS
from tests.golden_data import GOLDEN


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "tokenizer"
    train_tokenizer(WORDS * 3, 300, folder)
    return folder


def test_transformers_loads_the_folder(folder):
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    special = ours.special
    assert theirs.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [
        special.begin_of_text,
        special.end_of_text,
        ours.names["<|start_header_id|>"],
        ours.names["<|end_header_id|>"],
        special.end_of_turn,
        special.image_start,
        special.image_end,
    ]
    assert (theirs.bos_token_id, theirs.eos_token_id) == (
        special.begin_of_text,
        special.end_of_turn,
    )
    assert theirs.pad_token_id == special.pad
    assert len(theirs) == ours.vocab_size
    text = "What is this?\n Draw é🐱 12345"
    assert theirs(text).input_ids == [special.begin_of_text, *ours.encode_text(text)]
    assert theirs.decode(ours.encode_text(text)) == text


def test_size_is_bounded_and_frequent_words_are_one_id(folder, tmp_path):
    assert load_tokenizer(folder).vocab_size <= 300
    size = train_tokenizer(WORDS * 3, 512, tmp_path)
    large = load_tokenizer(tmp_path)
    assert size == large.vocab_size <= 512
    assert [len(large.encode_text(word)) for word in ("user", "assistant", " cat")] == [1, 1, 1]


def test_texts_are_split_as_llama_3_splits_them():
    assert LLAMA3_SPLIT in (GOLDEN / "tokenizer.json").read_text().replace("\\\\", "\\")
