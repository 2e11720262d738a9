"""D11: over-long samples end at an image boundary, and what is cut is known."""

import numpy as np
import pytest

from metamorph_jax.data.packing import cut_example, pack_rows
from metamorph_jax.data.templates import Example

P = 64  # visual tokens of an image
START, END, TEXT = 9, 8, 1  # image-start, image-end, any text


def example(pieces: list[int | None]) -> Example:
    """Returns numbers of text tokens, and None for an image between its start and end."""
    tokens, visual, num_images = [], [], 0
    for piece in pieces:
        if piece is None:
            tokens += [START, *[0] * P, END]
            visual += [-1, *range(num_images * P, (num_images + 1) * P), -1]
            num_images += 1
        else:
            tokens += [TEXT] * piece
            visual += [-1] * piece
    visual_index = np.array(visual, np.int32)
    return Example(
        tokens=np.array(tokens, np.int32),
        supervised=visual_index < 0,
        visual_index=visual_index,
        image_index=visual_index // P,
        images=tuple(f"{number}.png" for number in range(num_images)),
        image_is_answer=(False,) * num_images,
        where="long.jsonl:1",
    )


# pieces, max_seq_len, max_images -> tokens and images that are kept
CASES = {
    "200k tokens of text": ([200_000], 4096, 16, 4096, 0),
    "200k tokens behind an image": ([5, None, 200_000], 4096, 16, 4096, 1),
    "200k tokens before an image": ([200_000, None], 4096, 16, 4096, 0),
    "500 images, few allowed": ([3, *[None] * 500], 100_000, 16, 3 + 16 * 66, 16),
    "500 images, short row": ([3, *[None] * 500], 4096, 500, 3 + 62 * 66, 62),
    "500 images with text between": ([7, None] * 500, 2048, 64, 28 * 73 + 4, 28),
    "an image across the end": ([4000, None, 50], 4064, 16, 4000, 0),
    "only an image, longer than a row": ([None, 5], 60, 16, 0, 0),
    "an image that ends with the row": ([3999, None], 4064, 16, 4064, 1),
    "no image allowed": ([10, None, 10], 4096, 0, 10, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_d11_cut_at_an_image_boundary(name):
    pieces, max_seq_len, max_images, num_tokens, num_images = CASES[name]
    whole = example(pieces)
    cut = cut_example(whole, max_seq_len, max_images)
    assert cut is not whole  # which is how the cut ones are counted
    assert (len(cut), len(cut.images)) == (num_tokens, num_images)
    assert cut.images == whole.images[:num_images]
    assert np.count_nonzero(cut.visual_index >= 0) == num_images * P
    assert np.count_nonzero(cut.tokens == START) == num_images
    for field in ("tokens", "supervised", "visual_index", "image_index"):
        np.testing.assert_array_equal(getattr(cut, field), getattr(whole, field)[:num_tokens])
    assert cut.where == whole.where


def test_d11_cut_samples_fit_rows_with_others():
    samples = [cut_example(example(case[0]), 2048, 8) for case in CASES.values()]
    samples.append(example([20]))
    lengths = np.array([len(sample) for sample in samples])
    num_images = np.array([len(sample.images) for sample in samples])
    plan = pack_rows(np.arange(len(samples)), lengths, num_images, 2048, 8)
    assert sorted(plan.examples.tolist()) == list(range(len(samples)))
    for row in map(plan.__getitem__, range(len(plan))):
        assert lengths[row].sum() <= 2048 and num_images[row].sum() <= 8
