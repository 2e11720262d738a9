"""I5: a prompt has as many image slots as it has images, whatever it says."""

import numpy as np

from metamorph_jax.data.images import ImageLoader
from metamorph_jax.decoding.prompts import Prompt, read_prompt
from metamorph_jax.errors import UserError
from tests.injection import PAIRS, STRINGS, template_for, tokenizer

NUM_PROMPTS, NUM_VISUAL = 1000, 3
FRAGMENTS = [*STRINGS, "<image", "image>", "<ima", "ge>", "<|", "|>", "assistant", "\n", " ", "x"]


def test_i5_slots_equal_attached_images():
    random = np.random.default_rng(0)
    loader, pixels = ImageLoader("", 4, "square"), np.zeros((4, 4, 3), np.uint8)
    asked = refused = 0
    for number in range(NUM_PROMPTS):
        template, name = PAIRS[number % len(PAIRS)]
        used, written = tokenizer(name), template_for(template, name)
        text = "".join(random.choice(FRAGMENTS, random.integers(1, 8)))
        images = (pixels,) * int(random.integers(0, 3))
        arguments = (f"prompt {number}", written, used, NUM_VISUAL, loader)
        try:
            example, loaded = read_prompt(Prompt(text, images), *arguments)
        except UserError as error:
            # Tags that contradict the images, and plain captions of nothing.
            assert "<image>" in text or (template == "plain" and not images), error
            refused += 1
            continue
        asked += 1
        is_visual = example.visual_index >= 0
        assert len(loaded) == len(example.images) == len(images)
        assert is_visual.sum() == NUM_VISUAL * len(images)
        if written.image_tokens:
            for id_ in (used.special.image_start, used.special.image_end):
                assert (example.tokens[~is_visual] == id_).sum() == len(images)
    assert asked > 0.8 * NUM_PROMPTS and refused
