"""Prefill and the mixed text/visual loop: a batch of prompts in, emitted steps out, one program.

A row's mode is data: `countdown` is the number of visual tokens still to come in the current image,
0 when its `<image_end>` is due, -1 in text. The next input of a row is

    where(in_image, connect(predict_visual(hidden)), embed(token))

so rows of one batch paint and write at the same time, and nothing returns to the host before all
rows are done. The rules that an answer follows whatever the model says:

    - `<image_start>` is followed by exactly P visual tokens, then by `<image_end>`; inside an image
      no text token, and so no stop token, is looked at
    - outside of that place there is no `<image_end>`
    - an image is begun only if all of it, `<image_end>` included, still fits, and only
      `max_images` times
    - an answer ends after a stop token, or at its limit

What the rules changed is not hidden: `DecodeResult.followed` tells whether the model, left to its
own likeliest choices, would have kept them.

**Source:** MetaMorph `model/language_model/metamorph_llama.py` (greedy_decode), which re-runs the
whole sequence each step, looks for stop tokens inside images and leaves `<image_end>` to the model.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.decoding.sampling import Choice, choose
from metamorph_jax.models.cache import KVCache, create_cache, grow_cache
from metamorph_jax.models.metamorph import MetaMorph
from metamorph_jax.typing import Array, Bool, Float, Int, PyTree, Shaped

VISUAL_STEP, UNUSED_STEP = -1, -2  # in `steps`, beside token ids
_TEXT_MODE, _END_DUE = -1, 0  # in `countdown`, beside the number of visual tokens to come


class PromptBatch(NamedTuple):
    """Prompts padded on the left to one length, so that all rows continue at the same slot.

    Attributes:
        tokens: ids; 0 at visual positions and padding.
        visual_index: which of the row's I * P visual tokens sits here, -1: text.
        lengths: tokens of each prompt, visual ones included.
        limits: tokens that each answer may have, visual ones included; 0: the row is filling.
        images: uint8, or floating pixels that are already normalised; I may be 0.
    """

    tokens: Int[Array, "B T"]
    visual_index: Int[Array, "B T"]
    lengths: Int[Array, "B"]
    limits: Int[Array, "B"]
    images: Shaped[Array, "B I height width 3"]


@dataclasses.dataclass(frozen=True)
class Rules:
    """What the loop has to know of the vocabulary, and how much it may emit.

    Attributes:
        image_start: id that begins an image.
        image_end: id that ends it.
        stop_ids: ids that end an answer.
        max_new_tokens: steps that are allocated; no row's limit is larger.
        max_images: per answer.
    """

    image_start: int
    image_end: int
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    max_images: int


class DecodeState(NamedTuple):
    """What one step hands to the next.

    Attributes:
        step: how many steps each unfinished row has emitted.
        hidden: of the last input, from which the next step follows.
        cache: of all inputs so far.
        position: of the next input, for the rotary embedding.
        countdown: mode, see the module docstring.
        num_images: begun so far.
        is_done: the answer is complete.
        followed: the model has kept the rules by itself so far.
        steps: emitted ids, `VISUAL_STEP` or `UNUSED_STEP`.
        visual: visual tokens in the order of their emission.
    """

    step: Int[Array, ""]
    hidden: Float[Array, "B D"]
    cache: KVCache
    position: Int[Array, "B"]
    countdown: Int[Array, "B"]
    num_images: Int[Array, "B"]
    is_done: Bool[Array, "B"]
    followed: Bool[Array, "B"]
    steps: Int[Array, "B N"]
    visual: Float[Array, "B M E"]


class DecodeResult(NamedTuple):
    """The part of the last state that answers are made of; see `DecodeState`."""

    steps: Int[Array, "B N"]
    visual: Float[Array, "B M E"]
    followed: Bool[Array, "B"]


@functools.partial(jax.jit, static_argnames=("config", "rules"))
def decode_prompts(
    config: ModelConfig,
    rules: Rules,
    params: PyTree,
    prompts: PromptBatch,
    allowed: Bool[Array, "V"],
    choice: Choice,
) -> DecodeResult:
    """Returns the answers to a batch of prompts; compiled once per shape of the batch.

    Args:
        config: of the model.
        rules: of the loop.
        params: of the model, its blocks not stacked.
        prompts: padded to one length.
        allowed: ids, of the padded vocabulary, that an answer may contain.
        choice: how text tokens are chosen.
    """

    def is_unfinished(state: DecodeState):
        return ~jnp.all(state.is_done)

    def advance(state: DecodeState):
        return decode_step(config, rules, params, prompts.limits, allowed, choice, state)

    state = prefill(config, rules, params, prompts)
    state = jax.lax.while_loop(is_unfinished, advance, state)
    return DecodeResult(state.steps, state.visual, state.followed)


def prefill(config: ModelConfig, rules: Rules, params: PyTree, prompts: PromptBatch) -> DecodeState:
    """Returns the state after the last token of every prompt, nothing emitted yet."""
    model = functools.partial(MetaMorph(config, stacked=False).apply, {"params": params})
    batch, length = prompts.tokens.shape
    num_visual = config.visual_tokens.num_tokens
    if prompts.images.shape[1] == 0:
        visual = jnp.zeros((batch, 0, num_visual, config.llm.embed_dim), config.dtype)
    else:
        visual = model(model(prompts.images, method="encode"), method="connect")
    embeddings = model(prompts.tokens, prompts.visual_index, visual, method="embed")
    # Padding has negative positions; nothing looks at it.
    positions = jnp.arange(length)[None, :] - (length - prompts.lengths)[:, None]
    cache = create_cache(config, batch, length, config.dtype)
    start = jnp.int32(0)
    hidden, cache = model(
        embeddings, positions, cache, start, positions >= 0, method="decode_cached"
    )
    return DecodeState(
        step=jnp.int32(0),
        hidden=hidden[:, -1],
        # Grown after the prompt has been read, whose attention so costs T * T and not T * (T + N).
        cache=grow_cache(cache, rules.max_new_tokens),
        position=prompts.lengths,
        countdown=jnp.full(batch, _TEXT_MODE, jnp.int32),
        num_images=jnp.zeros(batch, jnp.int32),
        is_done=prompts.limits <= 0,
        followed=jnp.ones(batch, bool),
        steps=jnp.full((batch, rules.max_new_tokens), UNUSED_STEP, jnp.int32),
        visual=jnp.zeros((batch, rules.max_images * num_visual, config.visual_dim), jnp.float32),
    )


def decode_step(
    config: ModelConfig,
    rules: Rules,
    params: PyTree,
    limits: Int[Array, "B"],
    allowed: Bool[Array, "V"],
    choice: Choice,
    state: DecodeState,
) -> DecodeState:
    """Returns the state after every unfinished row has emitted one step and read it back in.

    Args:
        config: of the model.
        rules: of the loop.
        params: of the model, its blocks not stacked.
        limits: tokens that each answer may have.
        allowed: ids that an answer may contain.
        choice: how text tokens are chosen.
        state: of the step before.
    """
    model = functools.partial(MetaMorph(config, stacked=False).apply, {"params": params})
    in_image = state.countdown > _END_DUE
    predicted = model(state.hidden, method="predict_visual")
    token, followed = _next_token(
        rules,
        model(state.hidden, method="logits"),
        _permitted(config, rules, limits, allowed, state),
        choice,
        state,
    )
    read = {
        "tokens": jnp.where(in_image, 0, token)[:, None],
        "visual_index": jnp.where(in_image, 0, -1)[:, None],
        "visual": model(predicted[:, None, None, :], method="connect"),
    }
    hidden, cache = model(
        model(**read, method="embed"),
        state.position[:, None],
        state.cache,
        state.cache.valid.shape[1] - rules.max_new_tokens + state.step,
        ~state.is_done[:, None],
        method="decode_cached",
    )
    state = _emit(config, rules, state, token, predicted, limits)
    return state._replace(hidden=hidden[:, 0], cache=cache, followed=followed)


def _permitted(
    config: ModelConfig,
    rules: Rules,
    limits: Int[Array, "B"],
    allowed: Bool[Array, "V"],
    state: DecodeState,
) -> Bool[Array, "B V"]:
    """Returns which ids each row may emit as text."""
    needed = config.visual_tokens.num_tokens + 2  # with <image_start> and <image_end>
    may_begin = (state.num_images < rules.max_images) & (limits - state.step >= needed)
    ids = jnp.arange(allowed.shape[0])
    allowed = allowed & (ids != rules.image_end)
    is_start = ids == rules.image_start
    return jnp.where(is_start[None, :], may_begin[:, None], allowed[None, :])


def _next_token(
    rules: Rules,
    logits: Float[Array, "B V"],
    permitted: Bool[Array, "B V"],
    choice: Choice,
    state: DecodeState,
) -> tuple[Int[Array, "B"], Bool[Array, "B"]]:
    """Returns each row's text token (of no meaning inside an image), and the new `followed`."""
    is_end_due = state.countdown == _END_DUE
    chosen = choose(jnp.where(permitted, logits, -jnp.inf), choice, state.step)
    own = jnp.argmax(logits, axis=-1)
    own_is_permitted = jnp.take_along_axis(permitted, own[:, None], axis=1)[:, 0]
    kept = jnp.where(is_end_due, own == rules.image_end, own_is_permitted)
    in_image = state.countdown > _END_DUE
    followed = state.followed & (kept | in_image | state.is_done)
    return jnp.where(is_end_due, rules.image_end, chosen), followed


def _emit(
    config: ModelConfig,
    rules: Rules,
    state: DecodeState,
    token: Int[Array, "B"],
    predicted: Float[Array, "B E"],
    limits: Int[Array, "B"],
) -> DecodeState:
    """Returns the state with one more step written down and the mode of each row moved on."""
    num_visual = config.visual_tokens.num_tokens
    is_active = ~state.is_done
    in_image = state.countdown > _END_DUE
    begins = (state.countdown == _TEXT_MODE) & (token == rules.image_start)
    next_mode = jnp.where(begins, num_visual, _TEXT_MODE)
    countdown = jnp.where(in_image, state.countdown - 1, next_mode)
    is_stop = jnp.any(token[:, None] == jnp.asarray(rules.stop_ids)[None, :], axis=1)
    stops = (is_stop & ~in_image) | (state.step + 1 >= limits)
    record = jnp.where(is_active, jnp.where(in_image, VISUAL_STEP, token), UNUSED_STEP)
    slot = state.num_images * num_visual - state.countdown  # of the image that is being painted
    slot = jnp.where(in_image & is_active, slot, state.visual.shape[1])  # past the end: dropped
    rows = jnp.arange(slot.shape[0])
    return state._replace(
        step=state.step + 1,
        position=state.position + is_active,
        countdown=countdown,
        num_images=state.num_images + (begins & is_active),
        is_done=state.is_done | stops,
        steps=state.steps.at[:, state.step].set(record),
        visual=state.visual.at[rows, slot].set(predicted, mode="drop"),
    )
