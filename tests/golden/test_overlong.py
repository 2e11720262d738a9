"""Golden case I: what is left of samples that do not fit, against the reference's own numbers."""

import json

import numpy as np
import pytest

from metamorph_jax.data.conversation import read_conversation
from metamorph_jax.data.packing import cut_example
from metamorph_jax.data.records import parse_record
from metamorph_jax.data.templates import TEMPLATES, render_example
from metamorph_jax.data.tokenizer import load_tokenizer
from tests.data_files import one_row
from tests.golden_data import GOLDEN

pytestmark = pytest.mark.golden
CASE = json.loads((GOLDEN / "I_overlong.json").read_text("utf-8"))
MAX_LEN, NUM_VISUAL, NUM_SAMPLES = CASE["max_length"], CASE["num_image_tokens"], 3
IGNORE = -100


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_bytes((GOLDEN / "tokenizer.json").read_bytes())
    tokenizer = load_tokenizer(folder)
    found, flat_image = [], 0
    for conversations, owned in zip(CASE["conversations"], CASE["images_per_sample"], strict=True):
        tags = sum(turn["value"].count("<image>") for turn in conversations)
        images = [str(flat_image + index) for index in range(tags)]
        flat_image += owned  # a sample without tags owns one dummy image in the reference
        record = parse_record({"image": images, "conversations": conversations}, "I", 1)
        conversation = read_conversation(record)
        template = TEMPLATES["metamorph_llama3"]
        found.append(render_example(conversation, template, tokenizer, NUM_VISUAL))
    return found


def in_reference_mode(example):
    return cut_example(example, MAX_LEN, max_images=70, keep_dangling_start=True)


@pytest.mark.parametrize("sample", range(NUM_SAMPLES))
def test_uncut_ids(examples, sample):
    example = examples[sample]
    first_of_image = (example.visual_index >= 0) & (example.visual_index % NUM_VISUAL == 0)
    kept = (example.visual_index < 0) | first_of_image
    ids = np.where(example.visual_index >= 0, -200, example.tokens)[kept]
    assert ids.tolist() == CASE["input_ids"][sample]


@pytest.mark.parametrize("sample", range(NUM_SAMPLES))
def test_labels_and_visual_mask(examples, sample):
    cut = in_reference_mode(examples[sample])
    assert len(cut) == CASE["packed_lengths"][sample]
    labels = np.where(cut.supervised, cut.tokens, IGNORE)
    assert labels.tolist() == CASE["packed_labels"][sample]
    mask = np.zeros(MAX_LEN, int)
    is_visual = np.flatnonzero(cut.visual_index >= 0)
    mask[is_visual] = np.repeat(cut.image_is_answer, NUM_VISUAL)
    expected = CASE["supervised_visual_mask"][sample]
    assert mask[: len(expected)].tolist() == expected
    assert not mask[len(expected) :].any()


def test_inserted_and_target_images(examples):
    inserted, targets = [], []
    for sample, example in enumerate(examples):
        cut = in_reference_mode(example)
        begins = np.flatnonzero((cut.visual_index >= 0) & (cut.visual_index % NUM_VISUAL == 0))
        for begin, path, is_answer in zip(begins, cut.images, cut.image_is_answer, strict=True):
            inserted.append([sample, int(begin), int(path)])
            targets += [int(path)] * is_answer
    assert inserted == CASE["inserted_images"]
    assert targets == CASE["target_images"]


def test_rows_predict_what_the_reference_predicts(examples):
    """The shifted targets of a packed row say the same as the reference's labels."""
    cut = [in_reference_mode(example) for example in examples]
    images = [np.zeros((2, 2, 3), np.uint8)] * sum(len(example.images) for example in cut)
    row = one_row(
        cut,
        images,
        max_seq_len=3 * MAX_LEN,
        max_images=8,
        num_visual_tokens=NUM_VISUAL,
        image_size=2,
    )
    offset = 0
    for sample, length in enumerate(CASE["packed_lengths"]):
        labels = np.array(CASE["packed_labels"][sample])[1:]
        here = slice(offset, offset + length - 1)
        ours = np.where(row["loss_mask"][here], row["targets"][here], IGNORE)
        np.testing.assert_array_equal(ours, labels[: length - 1])
        visual = np.array(CASE["supervised_visual_mask"][sample])[1:length]
        np.testing.assert_array_equal(row["visual_target"][here] >= 0, visual.astype(bool))
        offset += length


def test_by_default_no_image_is_announced_that_is_not_there(examples):
    reference, ours = in_reference_mode(examples[0]), cut_example(examples[0], MAX_LEN, 70)
    assert reference.tokens[-1] == CASE["image_start_id"]
    assert reference.supervised[-1]
    np.testing.assert_array_equal(ours.tokens, reference.tokens[:-1])
    assert ours.images == reference.images
