"""Answers: text with pictures in their places, and whether they are whole."""

import numpy as np
import pytest

from metamorph_jax.data.templates import TEMPLATES, stop_ids
from metamorph_jax.decoding.answers import create_answer
from metamorph_jax.decoding.loop import UNUSED_STEP, VISUAL_STEP
from tests.data_files import small_tokenizer

P, E = 2, 3
LLAMA3 = TEMPLATES["llama3"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def answer(tokenizer, parts, followed=True, unused=3):
    """Returns the answer of texts, control ids and None (an image)."""
    special = tokenizer.special
    image = [special.image_start, *[VISUAL_STEP] * P, special.image_end]
    steps = []
    for part in parts:
        if isinstance(part, str):
            steps += tokenizer.encode_text(part)
        else:
            steps += image if part is None else [part]
    steps = np.array(steps + [UNUSED_STEP] * unused)
    visual = np.zeros((len(steps), E), np.float32)
    is_visual = steps == VISUAL_STEP
    visual[is_visual] = np.arange(is_visual.sum())[:, None]
    stop = stop_ids(LLAMA3, tokenizer)
    return create_answer(steps, visual, followed, tokenizer, stop, P)


def test_pictures_are_tags_in_the_text(tokenizer):
    end = tokenizer.special.end_of_turn
    found = answer(tokenizer, ["Here it is: ", None, " and ", None, ".", end])
    assert found.text == "Here it is: <image> and <image>."
    assert found.finish == "end_of_turn"
    assert found.well_formed
    assert found.steps.count(VISUAL_STEP) == 2 * P
    assert found.ids == [step for step in found.steps if step != VISUAL_STEP]
    assert found.ids.count(tokenizer.special.image_end) == 2
    np.testing.assert_array_equal(found.visual_tokens[:, :, 0], [[0, 1], [2, 3]])


def test_text_alone_has_no_visual_tokens(tokenizer):
    found = answer(tokenizer, ["This is a cat.", tokenizer.special.end_of_text], unused=0)
    assert found.text == "This is a cat."
    assert found.finish == "end_of_turn"
    assert found.visual_tokens.shape == (0, P, E)


def test_cut_answer(tokenizer):
    found = answer(tokenizer, ["This is"], unused=0)
    assert (found.text, found.finish, found.well_formed) == ("This is", "length", False)


def test_rules_that_had_to_be_enforced_show(tokenizer):
    assert not answer(tokenizer, [None, tokenizer.special.end_of_turn], followed=False).well_formed


def test_an_answer_may_be_empty(tokenizer):
    found = answer(tokenizer, [tokenizer.special.end_of_turn])
    assert (found.text, found.well_formed) == ("", True)


def test_letters_of_several_ids_survive(tokenizer):
    assert answer(tokenizer, ["Grüße ✓", None, "日本"]).text == "Grüße ✓<image>日本"


def test_both_ends_stop(tokenizer):
    special = tokenizer.special
    assert set(stop_ids(LLAMA3, tokenizer)) == {special.end_of_turn, special.end_of_text}
