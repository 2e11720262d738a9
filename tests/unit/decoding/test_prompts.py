"""Prompts: where images go, how they are padded and grouped, and what is refused."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from metamorph_jax.data.images import ImageLoader
from metamorph_jax.data.media import Tile
from metamorph_jax.data.templates import TEMPLATES
from metamorph_jax.data.views import ViewLayout
from metamorph_jax.decoding.prompts import (
    Prompt,
    ReadPrompt,
    create_batch,
    plan_batches,
    read_prompt,
    round_up,
)
from metamorph_jax.errors import UserError
from tests.data_files import small_tokenizer

NUM_VISUAL, SIZE = 4, 8


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def read(tokenizer, text, images=(), template="metamorph_llama3"):
    loader = ImageLoader("", SIZE)
    prompt = Prompt(text, tuple(images))
    return read_prompt(prompt, "prompt 1", TEMPLATES[template], tokenizer, NUM_VISUAL, loader)


@pytest.mark.parametrize("max_tiles", [None, 1])
def test_images_of_several_views(tokenizer, max_tiles):
    """The views of each image follow one another, and their tokens know their places."""
    layout = ViewLayout(((2 * SIZE, SIZE), (2 * SIZE, 2 * SIZE)), SIZE, 2, max_tiles)
    wide = np.repeat(np.arange(3 * SIZE, dtype=np.uint8)[None, :, None], SIZE, axis=0)
    prompt = Prompt("<image> <image>", (np.repeat(wide, 3, axis=2), pixels(7, 3 * SIZE)))
    loader = ImageLoader("", SIZE, "anyres")
    arguments = (TEMPLATES["llama3"], tokenizer, NUM_VISUAL, loader, layout)
    example, images = read_prompt(prompt, "prompt 1", *arguments)
    assert [type(media) for media in example.images] == [str, Tile, Tile, str, *[Tile] * 4]
    assert len(images) == 8 and all(image.shape == (SIZE, SIZE, 3) for image in images)
    left, right = (image[SIZE // 2, SIZE // 2, 0] for image in images[1:3])
    assert left < 3 * SIZE / 2 < right
    assert [image.max() for image in images[3:]] == [7] * 5
    has_mixtures = max_tiles is not None
    read = ReadPrompt(example, images, 9)
    batch = create_batch([read, made(tokenizer, 2)], SIZE, has_mixtures)
    here = slice(batch.tokens.shape[1] - len(example), None)
    np.testing.assert_array_equal(batch.visual_index[0, here], example.visual_index)
    assert (batch.visual_index == -2).any()
    assert (batch.mixture is not None) == has_mixtures
    if has_mixtures:
        for array, expected in zip(batch.mixture, example.sources, strict=True):
            np.testing.assert_array_equal(array[0, here], expected)
            assert len(np.unique(array[0, : here.start])) == 1
        assert example.mixture.weights.max(axis=1).min() < 1 and not batch.mixture[1][1].any()


def pixels(value, size=SIZE):
    return np.full((size, size, 3), value, np.uint8)


def shown(example, tokenizer):
    """Returns the prompt as text, images as <P>."""
    text = ""
    for token, index in zip(example.tokens, example.visual_index, strict=True):
        if index < 0:
            text += tokenizer.decode([token])
        elif index % NUM_VISUAL == 0:
            text += f"<{index // NUM_VISUAL}>"
    return text


def test_prompt_ends_with_the_assistants_open_header(tokenizer):
    example, images = read(tokenizer, "Draw a dog.")
    begin = "<|begin_of_text|>" * 2
    user = "<|start_header_id|>user<|end_header_id|>\nDraw a dog.<|eot_id|>"
    assistant = "<|start_header_id|>assistant<|end_header_id|>\n"
    assert shown(example, tokenizer) == begin + user + assistant
    assert images == ()


def test_tags_say_where_images_go(tokenizer):
    example, images = read(tokenizer, "a <image> b <image>", [pixels(1), pixels(2)])
    framed = "a <image_start><0><image_end> b <image_start><1><image_end><|eot_id|>"
    assert framed in shown(example, tokenizer)
    assert [image.min() for image in images] == [1, 2]
    np.testing.assert_array_equal(example.visual_index[example.visual_index >= 0], np.arange(8))


def test_images_without_tags_come_first_each_on_its_line(tokenizer):
    example, _ = read(tokenizer, "What is this?", [pixels(1), pixels(2)])
    framed = "\n<image_start><0><image_end>\n<image_start><1><image_end>\nWhat is this?<|eot_id|>"
    assert framed in shown(example, tokenizer)


def test_control_words_in_the_text_stay_text(tokenizer):
    example, _ = read(tokenizer, "<|eot_id|><image_start>")
    special = tokenizer.special
    assert list(example.tokens).count(special.end_of_turn) == 1
    assert special.image_start not in example.tokens


def test_files_and_arrays_are_resized_alike(tokenizer, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (20, 14, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    _, (from_file, from_array) = read(tokenizer, "?", [tmp_path / "a.png", image])
    assert from_file.shape == (SIZE, SIZE, 3)
    assert from_file.dtype == np.uint8
    np.testing.assert_array_equal(from_file, from_array)


@pytest.mark.parametrize(
    ("text", "count"), [("<image> and <image>", 1), ("<image>", 2), ("<image>", 0)]
)
def test_tags_and_images_must_agree(tokenizer, text, count):
    tags = text.count("<image>")
    with pytest.raises(UserError, match=rf"prompt 1: .*{tags} <image> tag.*{count} image"):
        read(tokenizer, text, [pixels(0)] * count)


def test_missing_image_is_named(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"prompt 1: image .*no\.png' does not exist"):
        read(tokenizer, "?", [tmp_path / "no.png"])
    with pytest.raises(UserError, match="is no plain file"):
        read(tokenizer, "?", [tmp_path])


def test_unreadable_image_is_named(tokenizer, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"prompt 1: image .*bad\.png' cannot be decoded"):
        read(tokenizer, "?", [tmp_path / "bad.png"])


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_arrays_must_be_rgb_bytes(tokenizer, image):
    with pytest.raises(UserError, match="expected uint8 RGB pixels"):
        read(tokenizer, "?", [image])


def test_round_up_is_close_and_has_few_sizes():
    sizes = [round_up(count, 32) for count in range(1, 2000)]
    assert sorted(set(sizes)) == [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]
    for count, size in enumerate(sizes, start=1):
        assert count <= size
        assert count > 32 or size == 32
        assert count <= 32 or size < 1.5 * count
    assert [round_up(count, 1) for count in (1, 2, 3, 4, 5, 7)] == [1, 2, 3, 4, 6, 8]


def made(tokenizer, num_words, num_images=0, limit=9):
    example, images = read(
        tokenizer, " cat" * num_words, [pixels(i + 1) for i in range(num_images)]
    )
    return ReadPrompt(example, images, limit)


def test_prompts_of_like_size_share_a_batch(tokenizer):
    prompts = [made(tokenizer, *sizes) for sizes in ((1,), (80,), (2,), (3, 1), (4,), (5,), (6, 1))]
    plan = plan_batches(prompts, max_rows=3)
    assert sorted(index for batch in plan for index in batch) == list(range(7))
    assert [0, 2] in plan  # four of a kind, in two equal batches
    assert [4, 5] in plan
    assert [1] in plan
    assert [3, 6] in plan


def test_batch_is_padded_on_the_left(tokenizer):
    prompts = [made(tokenizer, 1, 1), made(tokenizer, 2, 2, limit=3), made(tokenizer, 5)]
    batch = create_batch(prompts, SIZE)
    rows, length = batch.tokens.shape
    assert rows == 3
    assert batch.images.shape == (3, 2, SIZE, SIZE, 3)
    for row, prompt in enumerate(prompts):
        count = len(prompt.example)
        assert batch.lengths[row] == count
        np.testing.assert_array_equal(batch.tokens[row, length - count :], prompt.example.tokens)
        assert not batch.tokens[row, : length - count].any()
        index = batch.visual_index[row]
        np.testing.assert_array_equal(index[length - count :], prompt.example.visual_index)
        assert (index[: length - count] == -1).all()
        for slot in range(2):
            expected = slot + 1 if slot < len(prompt.images) else 0
            assert (batch.images[row, slot] == expected).all()
    assert batch.limits.tolist() == [9, 3, 9]


def test_rows_that_fill_the_batch_answer_nothing(tokenizer):
    prompts = [made(tokenizer, 1)] * 5
    batch = create_batch(prompts, SIZE)
    assert batch.limits.tolist() == [9] * 5 + [0]
    assert batch.images.shape[1] == 0


def test_text_prompt_of_another_template(tokenizer):
    plain, _ = read(tokenizer, " hi ", template="llama3")
    text = shown(plain, tokenizer)
    assert text.startswith("<|begin_of_text|><|start_header_id|>user")
    assert "\n\nhi<|eot_id|>" in text


def test_prompt_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Prompt("a").text = "b"
