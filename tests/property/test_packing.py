"""Packing loses nothing, overflows nothing and mixes nothing, whatever the examples are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metamorph_jax.data.conversation import Conversation, Image, Text, Turn
from metamorph_jax.data.packing import cut_example, epoch_order, pack_rows
from metamorph_jax.data.templates import TEMPLATES, render_example
from tests.data_files import one_row, small_tokenizer

P, T, IMAGES, SIZE = 3, 48, 3, 2
many = settings(deadline=None, max_examples=100)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


parts = st.lists(
    st.one_of(
        st.text("ab <|image_start>\n", min_size=1, max_size=6).map(Text),
        st.integers(0, 99).map(lambda number: Image(f"{number}.png")),
    ),
    max_size=4,
).map(tuple)
conversations = st.lists(parts, min_size=1, max_size=4).map(
    lambda turns: Conversation(
        tuple(Turn(("user", "assistant")[i % 2], parts) for i, parts in enumerate(turns)), "f:1"
    )
)


def render(conversation, tokenizer):
    return render_example(conversation, TEMPLATES["metamorph_llama3"], tokenizer, P)


@many
@given(
    items=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 4)), min_size=1, max_size=60),
    window=st.integers(0, 8),
    seed=st.integers(0, 9),
)
def test_every_example_is_in_one_row_and_fits(items, window, seed):
    lengths, images = (np.array(column) for column in zip(*items, strict=True))
    order = epoch_order([len(items)], [1.0], str(seed))
    plan = pack_rows(order, lengths, images, 20, 4, window=window)
    rows = [plan[row] for row in range(len(plan))]
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(items)))
    for row in rows:
        assert 1 <= len(row) <= (1 if window == 0 else len(items))
        assert lengths[row].sum() <= 20
        assert images[row].sum() <= 4
    again = pack_rows(order, lengths, images, 20, 4, window=window)
    assert again.fingerprint == plan.fingerprint


@many
@given(
    items=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=9),
    max_images=st.integers(3, 6),
)
def test_no_choice_fills_a_row_better(items, max_images):
    """Every choice of examples beside the oldest is tried."""
    lengths, images = (np.array(column) for column in zip(*items, strict=True))
    plan = pack_rows(np.arange(len(items)), lengths, images, 12, max_images)
    left = list(range(len(items)))
    for row in (plan[number].tolist() for number in range(len(plan))):
        assert row[0] == left[0]
        choices = [
            [left[0], *(index for bit, index in enumerate(left[1:]) if choice >> bit & 1)]
            for choice in range(1 << len(left[1:]))
        ]
        fitting = [
            lengths[choice].sum()
            for choice in choices
            if lengths[choice].sum() <= 12 and images[choice].sum() <= max_images
        ]
        assert lengths[row].sum() == max(fitting)
        left = [index for index in left if index not in row]


@many
@given(
    sources=st.lists(st.tuples(st.integers(1, 30), st.floats(0.01, 3.0)), min_size=1, max_size=4),
    key=st.text(max_size=5),
)
def test_sources_are_shown_as_often_as_weighted(sources, key):
    sizes, weights = zip(*sources, strict=True)
    order = epoch_order(sizes, weights, key)
    shown = np.bincount(order, minlength=sum(sizes))
    first = 0
    for size, weight in sources:
        mine = shown[first : first + size]
        assert set(mine.tolist()) <= {int(weight), int(weight) + 1}
        assert abs(mine.sum() - weight * size) <= 0.5 + 1e-6
        first += size


@many
@given(conversation=conversations, max_seq_len=st.integers(1, 60), max_images=st.integers(0, 4))
def test_cut_is_a_beginning_with_whole_images(tokenizer, conversation, max_seq_len, max_images):
    whole = render(conversation, tokenizer)
    cut = cut_example(whole, max_seq_len, max_images)
    assert len(cut) <= max_seq_len and len(cut.images) <= max_images
    assert cut.images == whole.images[: len(cut.images)]
    assert (cut.visual_index >= 0).sum() == P * len(cut.images)
    for name in ("tokens", "supervised", "visual_index"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name)[: len(cut)])
    starts = int((cut.tokens == tokenizer.special.image_start).sum())
    assert starts == len(cut.images)
    assert cut_example(cut, max_seq_len, max_images) is cut
    if len(whole) <= max_seq_len and len(whole.images) <= max_images:
        assert cut is whole


@many
@given(dialogues=st.lists(conversations, max_size=4))
def test_a_row_gives_its_examples_back(tokenizer, dialogues):
    examples, used, images = [], 0, 0
    for conversation in dialogues:
        example = cut_example(render(conversation, tokenizer), T, IMAGES)
        if used + len(example) <= T and images + len(example.images) <= IMAGES:
            examples.append(example)
            used, images = used + len(example), images + len(example.images)
    pixels = [np.full((SIZE, SIZE, 3), slot + 1, np.uint8) for slot in range(images)]
    row = one_row(
        examples, pixels, max_seq_len=T, max_images=IMAGES, num_visual_tokens=P, image_size=SIZE
    )

    visual = row["visual_index"]
    assert visual[visual >= 0].tolist() == list(range(images * P))
    assert row["images"][:, 0, 0, 0].tolist() == [*range(1, images + 1)] + [0] * (IMAGES - images)
    assert np.count_nonzero(row["segment_ids"]) == used
    assert not (row["loss_mask"] & (row["visual_target"] >= 0)).any()
    first_image = 0
    for segment, example in enumerate(examples, start=1):
        at = np.flatnonzero(row["segment_ids"] == segment)
        np.testing.assert_array_equal(at, np.arange(at[0], at[0] + len(example)))
        np.testing.assert_array_equal(row["positions"][at], np.arange(len(example)))
        np.testing.assert_array_equal(row["tokens"][at], example.tokens)
        shifted = np.where(visual[at] >= 0, visual[at] - first_image * P, -1)
        np.testing.assert_array_equal(shifted, example.visual_index)
        # Whatever is predicted is the next position of the same segment.
        mask, target = row["loss_mask"][at], row["visual_target"][at]
        np.testing.assert_array_equal(mask[:-1], example.supervised[1:])
        np.testing.assert_array_equal(
            row["targets"][at][:-1][mask[:-1]], example.tokens[1:][mask[:-1]]
        )
        predicts = target[:-1] >= 0
        np.testing.assert_array_equal(target[:-1][predicts], visual[at][1:][predicts])
        assert predicts.sum() == P * sum(example.image_is_answer)
        assert not mask[-1] and target[-1] == -1
        first_image += len(example.images)


def test_cutting_never_splits_what_hypothesis_may_miss(tokenizer):
    """Every possible length of one example with adjacent images."""
    turns = (Turn("user", (Image("1"), Image("2"))), Turn("assistant", (Image("3"), Text("ab"))))
    whole = render(Conversation(turns, "f:1"), tokenizer)
    for max_seq_len in range(1, len(whole) + 1):
        cut = cut_example(whole, max_seq_len, 9)
        assert (cut.visual_index >= 0).sum() == P * len(cut.images)
        assert (cut.tokens == tokenizer.special.image_start).sum() == len(cut.images)
