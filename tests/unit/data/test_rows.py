import numpy as np
import pytest

from metamorph_jax.data.conversation import read_conversation
from metamorph_jax.data.rows import empty_rows, pixel_slots
from metamorph_jax.data.templates import TEMPLATES, render_example
from tests.data_files import one_row, record, small_tokenizer

P, T, IMAGES, SIZE = 2, 64, 4, 3


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def examples(tokenizer):
    records = [
        record("<image>", "cat <image>", ["a", "b"]),
        record("Draw a dog.", "<image>", ["c"]),
    ]
    template = TEMPLATES["metamorph_llama3"]
    return [render_example(read_conversation(r), template, tokenizer, P) for r in records]


@pytest.fixture(scope="module")
def row(examples):
    images = [np.full((SIZE, SIZE, 3), value, np.uint8) for value in (1, 2, 3)]
    return one_row(
        examples, images, max_seq_len=T, max_images=IMAGES, num_visual_tokens=P, image_size=SIZE
    )


def test_segments_follow_each_other(row, examples):
    first, second = map(len, examples)
    expected = [1] * first + [2] * second + [0] * (T - first - second)
    assert row["segment_ids"].tolist() == expected
    assert row["positions"][: first + second].tolist() == [*range(first), *range(second)]
    assert not row["positions"][first + second :].any()


def test_visual_tokens_of_later_segments_count_on(row, examples):
    used = row["visual_index"][row["visual_index"] >= 0]
    assert used.tolist() == list(range(3 * P))
    second = row["visual_index"][row["segment_ids"] == 2]
    assert second[second >= 0].tolist() == [4, 5]


def test_hidden_states_predict_what_comes_next(row, tokenizer):
    special = tokenizer.special
    at = np.flatnonzero(row["visual_target"] >= 0)
    # Answer images are the second and the third: visual tokens 2, 3 and 4, 5.
    assert row["visual_target"][at].tolist() == [2, 3, 4, 5]
    for first in (at[0], at[2]):
        assert row["tokens"][first] == special.image_start
        # The first visual token's position predicts the second one.
        assert row["visual_index"][first + 1] == row["visual_target"][first]
        # The last visual token's position predicts image-end, as text.
        assert row["visual_target"][first + P] == -1
        assert row["loss_mask"][first + P]
        assert row["targets"][first + P] == special.image_end
    assert not (row["loss_mask"] & (row["visual_target"] >= 0)).any()


def test_answers_are_the_targets(row, tokenizer):
    special = tokenizer.special
    answer = [
        *tokenizer.encode_text("cat "),
        special.image_start,
        special.image_end,
        special.end_of_turn,
    ]
    targets = row["targets"][row["loss_mask"]]
    assert targets.tolist() == [*answer, *answer[-3:]]
    assert not row["targets"][~row["loss_mask"]].any()


def test_nothing_is_predicted_across_a_border(row, examples):
    last = len(examples[0]) - 1
    assert not row["loss_mask"][last]
    assert row["visual_target"][last] == -1


def test_unused_slots_are_black(row):
    assert row["images"][:3, 0, 0, 0].tolist() == [1, 2, 3]
    assert not row["images"][3].any()
    assert row["images"].dtype == np.uint8


def test_empty_row_is_padding():
    row = {name: array[0] for name, array in empty_rows(1, T, IMAGES, pixel_slots(SIZE)).items()}
    assert not row["segment_ids"].any() and not row["loss_mask"].any()
    assert (row["visual_index"] == -1).all() and (row["visual_target"] == -1).all()
    built = one_row([], [], max_seq_len=T, max_images=IMAGES, num_visual_tokens=P, image_size=SIZE)
    for name, array in row.items():
        np.testing.assert_array_equal(built[name], array)
