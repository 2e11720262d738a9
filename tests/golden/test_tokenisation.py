"""Golden case G: dialogues -> ids and labels, against the reference's own numbers."""

import json

import numpy as np
import pytest

from metamorph_jax.data.conversation import read_conversation
from metamorph_jax.data.records import parse_record
from metamorph_jax.data.templates import TEMPLATES, render_example
from metamorph_jax.data.tokenizer import load_tokenizer
from tests.golden_data import GOLDEN

pytestmark = pytest.mark.golden
CASE = json.loads((GOLDEN / "G_tokenisation.json").read_text("utf-8"))
PLACEHOLDER, IGNORE = CASE["image_placeholder_id"], CASE["ignore_label"]
EXAMPLES = {example["name"]: example for example in CASE["examples"]}
PLAIN = [
    name
    for name, example in EXAMPLES.items()
    if not example["reference_masked_everything"] and name != "answer_starts_with_newline"
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    source = GOLDEN / CASE["tokenizer_file"]
    (folder / "tokenizer.json").write_bytes(source.read_bytes())
    return load_tokenizer(folder)


def ids_and_labels(name, tokenizer):
    """Returns ours in the reference's notation: one placeholder an image, labels beside ids."""
    golden = EXAMPLES[name]
    images = [f"{index}.png" for index in range(golden["n_placeholders"])]
    fields = {"image": images, "conversations": golden["conversations"]}
    conversation = read_conversation(parse_record(fields, name, 1))
    example = render_example(conversation, TEMPLATES["metamorph_llama3"], tokenizer, 1)
    assert example.images == tuple(images)
    is_visual = example.visual_index >= 0
    ids = np.where(is_visual, PLACEHOLDER, example.tokens)
    answer_image = np.zeros(len(ids), bool)
    answer_image[is_visual] = example.image_is_answer
    labels = np.where(example.supervised | answer_image, ids, IGNORE)
    return ids.tolist(), labels.tolist()


def test_special_ids_and_vocabulary(tokenizer):
    special = tokenizer.special
    assert {
        "<|begin_of_text|>": special.begin_of_text,
        "<|start_header_id|>": tokenizer.names["<|start_header_id|>"],
        "<|end_header_id|>": tokenizer.names["<|end_header_id|>"],
        "<|end_of_text|>": special.end_of_text,
        "<|eot_id|>": special.end_of_turn,
        "<image_start>": special.image_start,
        "<image_end>": special.image_end,
    } == CASE["special_ids"]
    assert special.pad == CASE["special_ids"][CASE["pad_token"]]
    assert tokenizer.vocab_size == CASE["vocab_size"]


@pytest.mark.parametrize("case", CASE["plain_encodings"], ids=lambda case: repr(case["text"]))
def test_plain_texts(case, tokenizer):
    ids = tokenizer.encode_text(case["text"])
    begin, *expected = case["input_ids"]
    assert begin == tokenizer.special.begin_of_text  # the reference's tokenizer puts it in front
    if tokenizer.control_ids.isdisjoint(expected):
        assert ids == expected
    else:  # the reference lets a text speak control ids; ours spells the same characters
        assert tokenizer.control_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == case["text"]


@pytest.mark.parametrize("name", PLAIN)
def test_ids_and_labels_equal_the_reference(name, tokenizer):
    ids, labels = ids_and_labels(name, tokenizer)
    assert ids == EXAMPLES[name]["input_ids"]
    assert labels == EXAMPLES[name]["labels"]


def test_every_plain_example_is_compared():
    assert len(PLAIN) == 13


def test_answers_survive_where_the_reference_masks_a_last_user_turn(tokenizer):
    golden = EXAMPLES["ends_with_human_turn"]
    ids, labels = ids_and_labels("ends_with_human_turn", tokenizer)
    assert ids == golden["input_ids"]
    assert set(golden["labels"]) == {IGNORE}
    answer = [*tokenizer.encode_text("Hello."), tokenizer.special.end_of_turn]
    assert [label for label in labels if label != IGNORE] == answer


def test_an_empty_answer_is_an_end_of_turn(tokenizer):
    golden = EXAMPLES["empty_answer"]
    ids, labels = ids_and_labels("empty_answer", tokenizer)
    assert set(golden["labels"]) == {IGNORE}
    assert ids == [*golden["input_ids"], tokenizer.special.end_of_turn]
    assert labels == [*golden["labels"], tokenizer.special.end_of_turn]


def test_a_leading_newline_stays_apart_from_the_header(tokenizer):
    golden = EXAMPLES["answer_starts_with_newline"]
    ids, labels = ids_and_labels("answer_starts_with_newline", tokenizer)
    (newline,), (merged,) = tokenizer.encode_text("\n"), tokenizer.encode_text("\n\n")
    position = golden["input_ids"].index(merged)
    assert golden["labels"][position] == IGNORE
    before, after = golden["input_ids"][:position], golden["input_ids"][position + 1 :]
    assert ids == [*before, newline, newline, *after]
    assert labels == [*golden["labels"][:position], IGNORE, newline, *after]
