import numpy as np
import pytest

from metamorph_jax.data.packing import WINDOW, Plan, cut_example, epoch_order, pack_rows
from metamorph_jax.data.templates import Example

P = 2


def pack(lengths, images=None, max_seq_len=10, max_images=4, window=32):
    images = [0] * len(lengths) if images is None else images
    order = np.arange(len(lengths))
    plan = pack_rows(
        order, np.array(lengths), np.array(images), max_seq_len, max_images, window=window
    )
    return [plan[row].tolist() for row in range(len(plan))]


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ([6, 7, 4, 3, 5], [[0, 2], [1, 3], [4]]),
        ([6, 3, 4, 1], [[0, 1, 3], [2]]),  # equally full with 2 alone: the older joins
        ([5, 3, 4, 2, 1], [[0, 1, 3], [2, 4]]),
        ([10, 10], [[0], [1]]),
        ([1] * 12, [list(range(10)), [10, 11]]),
        ([0, 10, 0], [[0, 1, 2]]),
        ([], []),
    ],
)
def test_rows_are_filled_best_and_oldest_first(lengths, rows):
    assert pack(lengths) == rows


def test_images_fill_rows_too():
    assert pack([1, 1, 1], images=[3, 2, 1]) == [[0, 2], [1]]
    # Without its images, 1 would fill the row.
    assert pack([6, 4, 3], images=[3, 2, 1]) == [[0, 2], [1]]


def test_short_examples_fill_a_row_from_a_short_queue():
    assert pack([2, 2, 2, 2, 2, 3], window=2) == [[0, 1, 2, 3, 4], [5]]


def test_window_bounds_who_can_join():
    assert pack([6, 6, 6, 4], window=2) == [[0], [1], [2, 3]]
    assert pack([6, 6, 6, 4], window=4) == [[0, 3], [1], [2]]


def test_window_zero_does_not_pack():
    assert pack([1, 1, 1], window=0) == [[0], [1], [2]]


def test_what_fits_no_row_is_refused():
    for lengths, images in (([11], [0]), ([5], [5])):
        with pytest.raises(ValueError, match="more than 10 tokens or 4 images"):
            pack(lengths, images)


def test_rows_are_full_and_nobody_waits_long():
    rng = np.random.default_rng(0)
    lengths = np.minimum(64 + rng.lognormal(5.3, 0.9, 5000).astype(int), 2048)
    images = rng.integers(0, 2, 5000)
    plan = pack_rows(np.arange(5000), lengths, images, 2048, 12)
    assert lengths.sum() >= 0.99 * 2048 * len(plan)
    assert np.abs(plan.examples - np.arange(5000)).max() <= 4 * WINDOW


def test_fingerprint_tells_plans_apart():
    plan = Plan(np.array([0, 1, 2]), np.array([0, 2, 3]))
    assert plan.fingerprint == Plan(np.array([0, 1, 2]), np.array([0, 2, 3])).fingerprint
    for other in (
        Plan(np.array([1, 0, 2]), np.array([0, 2, 3])),
        Plan(np.array([0, 1, 2]), np.array([0, 1, 3])),
    ):
        assert plan.fingerprint != other.fingerprint


def counts(order, total):
    return np.bincount(order, minlength=total)


def test_weights_set_how_often_a_source_is_shown():
    found = counts(epoch_order([10, 20, 8], [2.0, 0.5, 1.25], "k"), 38)
    assert (found[:10] == 2).all()
    assert found[10:30].sum() == 10 and found[10:30].max() == 1
    assert found[30:].sum() == 10 and set(found[30:].tolist()) == {1, 2}


def test_another_epoch_is_another_order_and_another_fraction():
    first, second = (epoch_order([40], [0.5], f"0/vpit/{epoch}") for epoch in range(2))
    assert set(first.tolist()) != set(second.tolist())
    np.testing.assert_array_equal(first, epoch_order([40], [0.5], "0/vpit/0"))


def example(layout):
    """`.` is text, `s` an image-start, each digit an image of P visual tokens."""
    tokens, visual, images = [], [], []
    for symbol in layout:
        if symbol.isdigit():
            visual += range(len(images) * P, (len(images) + 1) * P)
            tokens += [0] * P
            images.append(symbol)
        else:
            tokens.append(9 if symbol == "s" else 1)
            visual.append(-1)
    answers = tuple(index % 2 == 1 for index in range(len(images)))
    supervised = np.array(visual) < 0
    return Example(
        tokens=np.array(tokens, int),
        supervised=supervised,
        visual_index=np.array(visual, int),
        image_index=np.array(visual, int) // P,
        images=tuple(images),
        image_is_answer=answers,
        where="f:1",
    )


@pytest.mark.parametrize(
    ("layout", "max_seq_len", "max_images", "kept"),
    [
        ("..s0..", 7, 4, "..s0.."),  # fits: untouched
        ("....", 3, 4, "..."),
        ("..s0..", 6, 4, "..s0."),
        ("..s0..", 5, 4, "..s0"),  # the image just fits
        ("..s0..", 4, 4, ".."),  # it does not: gone with its start
        ("..s0..", 3, 4, ".."),
        ("..s0..", 2, 4, ".."),
        ("s0s1s2..", 20, 2, "s0s1"),
        ("s0.s1.", 7, 1, "s0."),
        ("s0.", 9, 0, ""),
    ],
)
def test_cut(layout, max_seq_len, max_images, kept):
    cut, expected = cut_example(example(layout), max_seq_len, max_images), example(kept)
    assert cut.tokens.tolist() == expected.tokens.tolist()
    assert cut.visual_index.tolist() == expected.visual_index.tolist()
    assert cut.images == expected.images
    assert cut.image_is_answer == expected.image_is_answer
    assert len(cut.supervised) == len(cut)


def test_the_references_dangling_start_can_be_kept():
    assert len(cut_example(example("..s0.."), 4, 4, keep_dangling_start=True)) == 3
    assert len(cut_example(example("..s0.."), 2, 4, keep_dangling_start=True)) == 2
