"""Prefill and the mixed text/visual loop: a batch of prompts in, emitted steps out, one program.

A row's mode is data: `countdown` is the number of visual tokens still to come in the current image,
0 when its `<image_end>` is due, -1 in text. The next input of a row is

    where(in_image, connect(predict_visual(hidden)), embed(token))

so rows of one batch paint and write at the same time, and nothing returns to the host before all
rows are done. (A head that no row needs in a step is not computed.) The rules that an answer
follows whatever the model says:

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
from collections.abc import Callable
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
        visual_index: which of the row's I * P visual tokens sits here, -1: text, -2: newline.
        lengths: tokens of each prompt, visual ones included.
        limits: tokens that each answer may have, visual ones included; 0: the row is filling.
        images: uint8, or floating pixels that are already normalised; I may be 0.
        mixture: sources and weights, see `Batch`; None: no visual token is mixed of others.
    """

    tokens: Int[Array, "B T"]
    visual_index: Int[Array, "B T"]
    lengths: Int[Array, "B"]
    limits: Int[Array, "B"]
    images: Shaped[Array, "B I height width 3"]
    mixture: tuple[Int[Array, "B T 4"], Float[Array, "B T 4"]] | None = None


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
        hidden: of the last input, from which the last step followed.
        cache: of all inputs so far; the last step is not yet among them.
        position: of the last step, for the rotary embedding.
        token: emitted in the last step: an id, or `VISUAL_STEP`.
        predicted: the visual token of the last step.
        countdown: mode, see the module docstring.
        num_images: begun so far.
        is_done: the answer is complete.
        followed: the model has kept the rules by itself so far.
        steps: emitted ids, `VISUAL_STEP` or `UNUSED_STEP`.
        visual: the visual token of each visual step; zeros elsewhere.
    """

    step: Int[Array, ""]
    hidden: Float[Array, "B D"]
    cache: KVCache
    position: Int[Array, "B"]
    token: Int[Array, "B"]
    predicted: Float[Array, "B E"]
    countdown: Int[Array, "B"]
    num_images: Int[Array, "B"]
    is_done: Bool[Array, "B"]
    followed: Bool[Array, "B"]
    steps: Int[Array, "B N"]
    visual: Float[Array, "B N E"]


class DecodeResult(NamedTuple):
    """The part of the last state that answers are made of; see `DecodeState`."""

    steps: Int[Array, "B N"]
    visual: Float[Array, "B N E"]
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
    loop = Loop(config, rules, params, prompts.limits, allowed, choice)
    state = jax.lax.while_loop(
        lambda state: ~jnp.all(state.is_done), loop.next_step, loop.first_step(prompts)
    )
    return DecodeResult(state.steps, state.visual, state.followed)


@dataclasses.dataclass(frozen=True)
class Loop:
    """The two functions that the program is made of; lives while it is traced.

    Attributes:
        config: of the model.
        rules: what an answer must keep.
        params: of the model, its blocks not stacked.
        limits: tokens that each answer may have.
        allowed: ids that an answer may contain.
        choice: how text tokens are chosen.
    """

    config: ModelConfig
    rules: Rules
    params: PyTree
    limits: Int[Array, "B"]
    allowed: Bool[Array, "V"]
    choice: Choice

    def first_step(self, prompts: PromptBatch) -> DecodeState:
        """Returns the state after reading every prompt and emitting one step."""
        cfg, (batch, length) = self.config, prompts.tokens.shape
        num_visual, num_steps = cfg.visual_tokens.num_tokens, self.rules.max_new_tokens
        if prompts.images.shape[1] == 0:
            visual = jnp.zeros((batch, 0, num_visual, cfg.llm.embed_dim), cfg.dtype)
        else:
            visual = self._model("connect", self._model("encode", prompts.images))
        embeddings = self._model(
            "embed", prompts.tokens, prompts.visual_index, visual, prompts.mixture
        )
        # Padding has negative positions; nothing looks at it.
        positions = jnp.arange(length)[None, :] - (length - prompts.lengths)[:, None]
        cache = create_cache(cfg, batch, length, cfg.dtype)
        hidden, cache = self._model(
            "decode_cached", embeddings, positions, cache, jnp.int32(0), positions >= 0
        )
        state = DecodeState(
            step=jnp.int32(0),
            hidden=hidden[:, -1],
            # Grown only now: the prompt's attention costs T * T and not T * (T + N).
            cache=grow_cache(cache, num_steps),
            position=prompts.lengths - 1,
            token=jnp.zeros(batch, jnp.int32),
            predicted=jnp.zeros((batch, cfg.visual_dim), jnp.float32),
            countdown=jnp.full(batch, _TEXT_MODE, jnp.int32),
            num_images=jnp.zeros(batch, jnp.int32),
            is_done=prompts.limits <= 0,
            followed=jnp.ones(batch, bool),
            steps=jnp.full((batch, num_steps), UNUSED_STEP, jnp.int32),
            visual=jnp.zeros((batch, num_steps, cfg.visual_dim), jnp.float32),
        )
        return self._emit(state)

    def next_step(self, state: DecodeState) -> DecodeState:
        """Returns the state after reading the last step back in and emitting one more."""
        is_visual = state.token == VISUAL_STEP
        # Shape [B, 1, 1, D]: one image of one token, which index 0 picks.
        visual = self._when(
            jnp.any(is_visual),
            lambda: self._model("connect", state.predicted[:, None, None, :]),
        )
        embeddings = self._model(
            "embed",
            jnp.where(is_visual, 0, state.token)[:, None],
            jnp.where(is_visual, 0, -1)[:, None],
            visual,
        )
        num_slots = state.cache.valid.shape[1]
        hidden, cache = self._model(
            "decode_cached",
            embeddings,
            state.position[:, None],
            state.cache,
            num_slots - self.rules.max_new_tokens + state.step - 1,
            ~state.is_done[:, None],
        )
        return self._emit(state._replace(hidden=hidden[:, 0], cache=cache))

    def _emit(self, state: DecodeState) -> DecodeState:
        """Returns the state with what follows from `hidden` written down, and its mode moved on."""
        rules, is_active = self.rules, ~state.is_done
        in_image = state.countdown > _END_DUE
        predicted = state.predicted
        if self.config.vision_head != "none":
            predicted = self._when(
                jnp.any(in_image & is_active), lambda: self._model("predict_visual", state.hidden)
            )
        text, kept = self._when(jnp.any(~in_image & is_active), lambda: self._choose_text(state))
        begins = (state.countdown == _TEXT_MODE) & (text == rules.image_start)
        next_mode = jnp.where(begins, self.config.visual_tokens.num_tokens, _TEXT_MODE)
        is_stop = jnp.any(text[:, None] == jnp.asarray(rules.stop_ids)[None, :], axis=1)
        stops = (is_stop & ~in_image) | (state.step + 1 >= self.limits)
        token = jnp.where(in_image, VISUAL_STEP, text)
        record = jnp.where(is_active, token, UNUSED_STEP)[:, None]
        painted = jnp.where((in_image & is_active)[:, None], predicted, 0)[:, None, :]
        return state._replace(
            step=state.step + 1,
            position=state.position + 1,
            token=token,
            predicted=predicted,
            countdown=jnp.where(in_image, state.countdown - 1, next_mode),
            num_images=state.num_images + begins,
            is_done=state.is_done | stops,
            followed=state.followed & (kept | in_image | state.is_done),
            steps=jax.lax.dynamic_update_slice(state.steps, record, (0, state.step)),
            visual=jax.lax.dynamic_update_slice(state.visual, painted, (0, state.step, 0)),
        )

    def _choose_text(self, state: DecodeState) -> tuple[Int[Array, "B"], Bool[Array, "B"]]:
        """Returns the text token of each row, and whether the model's own likeliest was allowed."""
        logits = self._model("logits", state.hidden)
        permitted = self._permitted(state)
        chosen = choose(jnp.where(permitted, logits, -jnp.inf), self.choice, state.step)
        own = jnp.argmax(logits, axis=-1)
        own_is_permitted = jnp.take_along_axis(permitted, own[:, None], axis=1)[:, 0]
        is_end_due = state.countdown == _END_DUE
        text = jnp.where(is_end_due, self.rules.image_end, chosen)
        return text, jnp.where(is_end_due, own == self.rules.image_end, own_is_permitted)

    def _permitted(self, state: DecodeState) -> Bool[Array, "B V"]:
        """Returns which ids each row may emit as text."""
        rules = self.rules
        needed = self.config.visual_tokens.num_tokens + 2  # with <image_start> and <image_end>
        may_begin = (state.num_images < rules.max_images) & (self.limits - state.step >= needed)
        ids = jnp.arange(self.allowed.shape[0])
        allowed = self.allowed & (ids != rules.image_end)
        is_start = ids == rules.image_start
        return jnp.where(is_start[None, :], may_begin[:, None], allowed[None, :])

    def _model(self, method: str, *args):
        """Returns what a method of the model returns."""
        model = MetaMorph(self.config, stacked=False)
        return model.apply({"params": self.params}, *args, method=method)

    @staticmethod
    def _when(condition: Bool[Array, ""], compute: Callable[[], PyTree]) -> PyTree:
        """Returns what `compute` returns, or zeros without computing it."""
        shapes = jax.eval_shape(compute)
        zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)  # noqa: E731
        return jax.lax.cond(condition, compute, zeros)
