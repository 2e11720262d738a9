"""The rules of an answer, and that batch, padding and cache leave no trace in it."""

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
from metamorph_jax.decoding.sampling import GREEDY, create_choice
from metamorph_jax.models.metamorph import MetaMorph
from metamorph_jax.models.stack import unstack_blocks
from tests import tolerances
from tests.model_helpers import random_params
from tests.scripted_model import VISUAL, scripted_config, scripted_params
from tests.tiny import tiny_model

# Ids; the first ones are ordinary text.
ASK, A, B, C, START, END, STOP, OTHER_STOP, FORBIDDEN = 1, 2, 3, 4, 35, 36, 37, 38, 39
IMAGE = [VISUAL_STEP] * 4  # this model's P
SCRIPTED = scripted_config(vocab_size=40)
RANDOM = tiny_model()


def rules(max_new_tokens=24, max_images=2):
    return Rules(START, END, (STOP, OTHER_STOP), max_new_tokens, max_images)


def allowed(config):
    ids = np.arange(config.llm.padded_vocab_size)
    return (ids < config.llm.vocab_size) & (ids != FORBIDDEN)


def prompt_batch(config, prompts, limits, length=16, images=None):
    """Returns prompts, given as lists of ids with -1 for visual tokens."""
    size, shape = config.vision.image_size, (len(prompts), length)
    batch = PromptBatch(
        tokens=np.zeros(shape, np.int32),
        visual_index=np.full(shape, -1, np.int32),
        lengths=np.array([len(prompt) for prompt in prompts], np.int32),
        limits=np.broadcast_to(np.asarray(limits, np.int32), len(prompts)),
        images=np.zeros((len(prompts), 0, size, size, 3), np.uint8) if images is None else images,
    )
    for row, prompt in enumerate(prompts):
        ids, is_visual = np.array(prompt), np.array(prompt) == VISUAL_STEP
        batch.tokens[row, length - len(ids) :] = np.where(is_visual, 0, ids)
        index = np.where(is_visual, np.cumsum(is_visual) - 1, -1)
        batch.visual_index[row, length - len(ids) :] = index
    return batch


def answer(script, limit=24, prompts=((ASK,),), **changes):
    """Returns (steps, visual tokens, followed) of each prompt."""
    params = unstack_blocks(scripted_params(SCRIPTED, script))
    batch = prompt_batch(SCRIPTED, prompts, limit)
    result = decode_prompts(SCRIPTED, rules(**changes), params, batch, allowed(SCRIPTED), GREEDY)
    return [split(*row) for row in zip(*jax.device_get(tuple(result)), strict=True)]


def split(steps, visual, followed):
    count = int((steps != UNUSED_STEP).sum())
    assert (steps[count:] == UNUSED_STEP).all()
    assert not visual[steps != VISUAL_STEP].any()
    return steps[:count].tolist(), visual[steps == VISUAL_STEP], bool(followed)


def test_text_then_image_then_text():
    script = {ASK: [A], A: [START], VISUAL: [END], END: [B], B: [STOP]}
    ((steps, visual, followed),) = answer(script)
    assert steps == [A, START, *IMAGE, END, B, STOP]
    assert followed
    assert visual.shape == (4, SCRIPTED.visual_dim)
    np.testing.assert_allclose(np.linalg.norm(visual, axis=-1), 1, rtol=1e-5)


def test_stop_tokens_are_not_looked_at_inside_an_image():
    script = {ASK: [START], START: [STOP], VISUAL: [STOP], END: [OTHER_STOP]}
    ((steps, visual, followed),) = answer(script)
    assert steps == [START, *IMAGE, END, OTHER_STOP]
    assert len(visual) == 4
    assert not followed  # image_end had to be forced


def test_image_end_is_forced_whatever_the_model_wants():
    script = {ASK: [START], VISUAL: [START, A], END: [STOP]}
    ((steps, _, followed),) = answer(script)
    assert steps == [START, *IMAGE, END, STOP]
    assert not followed


def test_no_image_end_without_an_image():
    ((steps, _, followed),) = answer({ASK: [END, A], A: [STOP]})
    assert steps == [A, STOP]
    assert not followed


@pytest.mark.parametrize(("max_images", "count"), [(0, 0), (1, 1), (2, 2), (3, 3)])
def test_images_per_answer(max_images, count):
    script = {ASK: [START, STOP], VISUAL: [END], END: [START, STOP]}
    ((steps, visual, followed),) = answer(script, max_images=max_images)
    assert steps == [START, *IMAGE, END] * count + [STOP]
    assert visual.shape == (4 * count, SCRIPTED.visual_dim)
    assert not followed  # it wanted one more


@pytest.mark.parametrize(("limit", "begun"), [(6, False), (7, True)])
def test_an_image_that_does_not_fit_is_not_begun(limit, begun):
    script = {ASK: [A], A: [START, B], B: [B], VISUAL: [END], END: [STOP]}
    ((steps, visual, followed),) = answer(script, limit=limit)
    assert steps == ([A, START, *IMAGE, END] if begun else [A, B, B, B, B, B])
    assert len(visual) == (4 if begun else 0)
    assert followed == begun


def test_ids_that_are_not_allowed_are_never_chosen():
    ((steps, _, followed),) = answer({ASK: [FORBIDDEN, A], A: [STOP]})
    assert steps == [A, STOP]
    assert not followed


def test_rows_end_and_paint_each_for_themselves():
    script = {ASK: [STOP], A: [START, B], B: [C], C: [A], VISUAL: [END], END: [B]}
    prompts = [[ASK], [A], [A, B], [C, C, B, ASK], [B, A], [C]]
    limits = [9, 20, 20, 20, 0, 1]
    together = answer(script, limits, prompts)
    assert together[1][0] == [START, *IMAGE, END, B, C, A] * 2 + [B, C]
    for prompt, limit, (steps, visual, followed) in zip(prompts, limits, together, strict=True):
        ((alone, alone_visual, alone_followed),) = answer(script, limit, [prompt])
        assert (steps, followed) == (alone, alone_followed)
        np.testing.assert_allclose(visual, alone_visual, atol=tolerances.FLOAT32_REORDERED)
    assert [len(steps) for steps, _, _ in together] == [1, 20, 20, 1, 0, 1]


# Below, a model with random weights, sampled from few ids, so that rows differ in everything.
FEW = np.isin(np.arange(RANDOM.llm.padded_vocab_size), [0, A, B, C, STOP])


@functools.cache
def random_model():
    return random_params(RANDOM, seed=1)


def mixed_prompts(count):
    """Returns prompts of many lengths, half of them with an image, and the images."""
    rng = np.random.default_rng(2)
    size = RANDOM.vision.image_size
    images = rng.integers(0, 256, (count, 1, size, size, 3), dtype=np.uint8)
    prompts = []
    for row in range(count):
        words = rng.integers(0, 30, 1 + row).tolist()
        prompts.append(words[:1] + (IMAGE if row % 2 else []) + words[1:])
    return prompts, images


def sampled(prompts, images, rows, length):
    """Returns what `split` returns, and the loop and batch behind it."""
    params = unstack_blocks(random_model())
    batch = prompt_batch(RANDOM, prompts, 24, length, images)
    choice = create_choice(1.5, 0.95, 0, jnp.asarray(rows))
    result = decode_prompts(RANDOM, rules(), params, batch, FEW, choice)
    return [split(*row) for row in zip(*jax.device_get(tuple(result)), strict=True)]


def test_batch_of_mixed_prompts_equals_single_runs():
    prompts, images = mixed_prompts(8)
    together = sampled(prompts, images, range(8), length=16)
    assert sum(START in steps for steps, _, _ in together) >= 3
    assert len({len(steps) for steps, _, _ in together}) >= 4
    for row, prompt in enumerate(prompts):
        length = 8 if len(prompt) <= 8 else 12  # other padding, too
        ((steps, visual, followed),) = sampled([prompt], images[row : row + 1], [row], length)
        assert (steps, followed) == (together[row][0], together[row][2])
        np.testing.assert_allclose(
            visual, together[row][1], rtol=0, atol=tolerances.DECODED_VISUAL_TOKENS
        )


def test_hidden_states_equal_those_of_one_uncached_pass():
    prompts, images = mixed_prompts(6)
    batch = prompt_batch(RANDOM, prompts, 24, 16, images)
    choice = create_choice(1.5, 0.95, 0, jnp.arange(6))
    params = unstack_blocks(random_model())
    loop = Loop(RANDOM, rules(), params, batch.limits, FEW, choice)
    next_step, states = jax.jit(loop.next_step), [jax.jit(loop.first_step)(batch)]
    while not states[-1].is_done.all():
        states.append(next_step(states[-1]))
    cached = np.stack([state.hidden for state in states], axis=1)
    rows = [split(*row) for row in zip(*np_result(states[-1]), strict=True)]
    assert sum(VISUAL_STEP in steps for steps, _, _ in rows) >= 2
    uncached = teacher_forced(prompts, images, rows)
    for row, (steps, _, _) in enumerate(rows):
        first = len(prompts[row]) - 1
        np.testing.assert_allclose(
            cached[row, : len(steps)],
            uncached[row][first : first + len(steps)],
            rtol=0,
            atol=tolerances.DECODED_HIDDEN,
        )


def np_result(state):
    return jax.device_get((state.steps, state.visual, state.followed))


def teacher_forced(prompts, images, rows):
    """Returns hidden states of prompts and answers, in the form that is trained, without cache."""

    def model(method, *args):
        return MetaMorph(RANDOM).apply({"params": random_model()}, *args, method=method)

    length = max(
        len(prompt) + len(steps) for prompt, (steps, _, _) in zip(prompts, rows, strict=True)
    )
    sequences = [prompt + steps for prompt, (steps, _, _) in zip(prompts, rows, strict=True)]
    batch = prompt_batch(RANDOM, sequences, 0, length)
    pad = np.array([length - len(sequence) for sequence in sequences])[:, None]
    positions = np.arange(length)[None, :] - pad
    own = np.asarray(model("encode", images))[:, 0]
    features = np.zeros((len(prompts), 3, *own.shape[1:]), np.float32)
    for row, (_, visual, _) in enumerate(rows):
        from_prompt = own[row : row + 1] if VISUAL_STEP in prompts[row] else own[:0]
        every = np.concatenate([from_prompt, visual.reshape(-1, *own.shape[1:])])
        features[row, : len(every)] = every
    embeddings = model("embed", batch.tokens, batch.visual_index, model("connect", features))
    segments = (positions >= 0).astype(np.int32)
    hidden = np.asarray(model("decode", embeddings, segments, positions))
    return [hidden[row, pad[row, 0] :] for row in range(len(prompts))]


def test_same_shapes_compile_once():
    before = decode_prompts._cache_size()
    for limit in (3, 5, 24):
        for script in ({ASK: [A], A: [STOP]}, {ASK: [START], VISUAL: [END], END: [STOP]}):
            answer(script, limit, prompts=((ASK,), (ASK, A)))
    assert decode_prompts._cache_size() <= before + 1
