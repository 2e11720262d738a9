"""Lengths like those of LLaVA-1.5's instruction mix (mix665k), drawn from a seed.

How many rows each part has, and which have an image, is published: llava.md, section 4. How long
their texts are is our estimate from what the parts are: one question with a word for an answer
(OKVQA), several merged into one row (VQAv2, GQA, OCRVQA, VG: pairs per image times 15 to 35
tokens), descriptions of some 180 tokens, and ShareGPT's text-only conversations with a long tail.
"""

import numpy as np

# rows, images, median tokens of text, standard deviation of their logarithm
PARTS = {
    "LLaVA conversation": (58_000, 1, 350, 0.45),
    "LLaVA detail": (23_000, 1, 180, 0.3),
    "LLaVA reasoning": (76_712, 1, 260, 0.3),
    "ShareGPT": (40_688, 0, 1100, 1.0),
    "VQAv2": (82_783, 1, 100, 0.35),
    "GQA": (72_140, 1, 170, 0.5),
    "OKVQA": (8_998, 1, 35, 0.25),
    "OCRVQA": (80_000, 1, 110, 0.25),
    "A-OKVQA": (66_160, 1, 75, 0.25),
    "TextCaps": (21_953, 1, 90, 0.5),
    "RefCOCO": (48_447, 1, 250, 0.6),
    "VG": (86_417, 1, 300, 0.6),
}


def llava_like(
    count: int, tokens_per_image: int, max_seq_len: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens (images included, cut at `max_seq_len`) and images of random samples."""
    random = np.random.default_rng(seed)
    rows, images, median, spread = np.array(list(PARTS.values())).T
    part = random.choice(len(PARTS), count, p=rows / rows.sum())
    text = np.exp(np.log(median[part]) + spread[part] * random.standard_normal(count))
    num_images = images[part].astype(np.int64)
    tokens = 8 + text.astype(np.int64) + num_images * tokens_per_image
    return np.minimum(tokens, max_seq_len), num_images
