"""Golden case D: greedy answers with and without images, against the reference's own numbers.

The reference re-runs the whole sequence at every step; ours keeps a cache, and answers all four
prompts as one batch.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metamorph_jax.decoding.loop import (
    UNUSED_STEP,
    VISUAL_STEP,
    Loop,
    PromptBatch,
    Rules,
    decode_prompts,
)
from metamorph_jax.decoding.sampling import GREEDY
from metamorph_jax.models.metamorph import MetaMorph
from metamorph_jax.models.stack import unstack_blocks
from tests import golden_model, tolerances
from tests.golden_data import load_case
from tests.hub_folders import import_params

pytestmark = pytest.mark.golden
FIELDS, TENSORS = load_case("D_greedy_decode")
PROMPTS = {prompt["name"]: prompt for prompt in FIELDS["prompts"]}
CONFIG = FIELDS["config"]
MODEL = golden_model.model_config(CONFIG)
NUM_VISUAL = CONFIG["num_image_tokens"]
RULES = Rules(
    image_start=CONFIG["image_start_id"],
    image_end=CONFIG["image_end_id"],
    stop_ids=tuple(CONFIG["eos_ids"]),
    max_new_tokens=32,
    max_images=3,
)


@functools.cache
def params():
    weights = golden_model.with_prefix(TENSORS, "weights/")
    return unstack_blocks(jax.tree.map(jnp.asarray, import_params(weights, MODEL)))


def allowed():
    return np.arange(MODEL.llm.padded_vocab_size) < MODEL.llm.vocab_size


def outputs(name):
    return golden_model.with_prefix(TENSORS, f"{name}/outputs/")


def prompt_batch(names, limit=32):
    """Returns prompts in our form, with the reference's own, already normalised pixels."""
    size, length = CONFIG["vision"]["image_size"], 40
    shape = (len(names), length)
    batch = PromptBatch(
        tokens=np.zeros(shape, np.int32),
        visual_index=np.full(shape, -1, np.int32),
        lengths=np.zeros(len(names), np.int32),
        limits=np.full(len(names), limit, np.int32),
        images=np.zeros((len(names), 1, size, size, 3), np.float32),
    )
    for row, name in enumerate(names):
        tokens, visual = [], []
        for token in PROMPTS[name]["prompt_ids"]:
            is_image = token == CONFIG["image_placeholder_id"]
            tokens += [0] * NUM_VISUAL if is_image else [token]
            visual += range(NUM_VISUAL) if is_image else [-1]
        batch.lengths[row] = len(tokens)
        batch.tokens[row, length - len(tokens) :] = tokens
        batch.visual_index[row, length - len(tokens) :] = visual
        if PROMPTS[name]["prompt_images"]:
            pixels = TENSORS[f"{name}/inputs/pixel_values"]
            batch.images[row] = golden_model.channels_last(pixels)
    return batch


@functools.cache
def answers():
    """Returns the answers to all prompts, decoded as one batch."""
    batch = prompt_batch(list(PROMPTS))
    result = decode_prompts(MODEL, RULES, params(), batch, allowed(), GREEDY)
    return dict(zip(PROMPTS, zip(*jax.device_get(tuple(result)), strict=True), strict=True))


@functools.cache
def trace(name):
    """Returns (hidden state behind each step, logits) of one prompt, step by step."""
    batch = prompt_batch([name])
    loop = Loop(MODEL, RULES, params(), batch.limits, allowed(), GREEDY)
    next_step = jax.jit(loop.next_step)
    states = [jax.jit(loop.first_step)(batch)]
    while not states[-1].is_done.all():
        states.append(next_step(states[-1]))
    hidden = np.concatenate([state.hidden for state in states])
    logits = jax.jit(functools.partial(MetaMorph(MODEL).apply, method="logits"))
    return hidden, np.asarray(logits({"params": params()}, hidden))


def tolerance(name):
    """Returns the bar; towers round apart, and a prompt's image is read from its pixels."""
    from_pixels = PROMPTS[name]["prompt_images"] > 0
    return tolerances.GOLDEN_HIDDEN_FROM_PIXELS if from_pixels else tolerances.GOLDEN


@pytest.mark.parametrize("name", PROMPTS)
def test_emitted_steps(name):
    steps, _, followed = answers()[name]
    emitted = steps[steps != UNUSED_STEP]
    np.testing.assert_array_equal(emitted, outputs(name)["steps"])
    np.testing.assert_array_equal(emitted[emitted != VISUAL_STEP], outputs(name)["emitted_ids"])
    assert emitted.tolist() == PROMPTS[name]["steps"]
    assert followed  # the reference's model emits image_end by itself


@pytest.mark.parametrize("name", ["makes_image", "two_images"])
def test_visual_tokens(name):
    expected = outputs(name)["visual_embeddings"]
    steps, visual, _ = answers()[name]
    ours = visual[steps == VISUAL_STEP]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerances.GOLDEN)


@pytest.mark.parametrize("name", PROMPTS)
def test_hidden_states_with_cache(name):
    first = PROMPTS[name]["packed_prompt_length"] - 1
    expected = outputs(name)["final_hidden_full"][0, first:-1]  # nothing follows from the last
    hidden, _ = trace(name)
    np.testing.assert_allclose(hidden, expected, rtol=0, atol=tolerance(name))


@pytest.mark.parametrize("name", PROMPTS)
def test_logits(name):
    _, logits = trace(name)
    is_text = outputs(name)["steps"] != VISUAL_STEP
    ours = logits[is_text][:, : MODEL.llm.vocab_size]
    expected = outputs(name)["text_step_logits"]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance(name))


def test_limit_counts_exactly():
    """The reference emits one token more than asked for; we do not."""
    prompt = PROMPTS["text_only"]
    quirk = prompt["length_limit_quirk"]
    batch = prompt_batch(["text_only"], limit=quirk["max_new_tokens"])
    steps, _, _ = decode_prompts(MODEL, RULES, params(), batch, allowed(), GREEDY)
    emitted = np.asarray(steps)[np.asarray(steps) != UNUSED_STEP].tolist()
    assert emitted == quirk["reference_emitted_ids"][:-1]
