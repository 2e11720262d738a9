"""Logits -> next token: the most likely one, or a draw with temperature and top-p.

Which tokens are allowed at all is decided in `loop.py`; they arrive here with logit -inf.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metamorph_jax.typing import Array, Bool, Float, Int, Shaped


class Choice(NamedTuple):
    """How the next token is chosen.

    None is part of a compiled program's signature, numbers are data: greedy, plain and top-p
    decoding are three programs, and a temperature more is none.

    Attributes:
        row_keys: one random key per row; its draws depend on nothing else.
        temperature: logits are divided by this; None: the most likely token.
        top_p: draw from the smallest set of likeliest tokens with at least this probability;
            None: from all.
    """

    row_keys: Shaped[Array, "B"] | None = None
    temperature: Float[Array, ""] | None = None
    top_p: Float[Array, ""] | None = None


GREEDY = Choice()


def create_choice(
    temperature: float, top_p: float, seed: int, row_numbers: Int[Array, "B"]
) -> Choice:
    """Returns the choice for a batch of rows.

    Args:
        temperature: 0 is greedy.
        top_p: 1 keeps all tokens.
        seed: of all draws.
        row_numbers: equal numbers draw alike, whatever the rest of the batch.
    """
    if temperature == 0:
        return GREEDY
    fold_rows = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return Choice(
        row_keys=fold_rows(jax.random.key(seed), row_numbers),
        temperature=jnp.float32(temperature),
        top_p=None if top_p >= 1 else jnp.float32(top_p),
    )


def choose(logits: Float[Array, "B V"], choice: Choice, step: Int[Array, ""]) -> Int[Array, "B"]:
    """Returns one token per row.

    Args:
        logits: -inf where a token is not allowed; at least one per row is.
        choice: how.
        step: number of the decoding step; every step has draws of its own.
    """
    if choice.temperature is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    scaled = logits / choice.temperature
    if choice.top_p is not None:
        scaled = jnp.where(nucleus(scaled, choice.top_p), scaled, -jnp.inf)
    step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(choice.row_keys, step)
    return jax.vmap(jax.random.categorical)(step_keys, scaled).astype(jnp.int32)


def nucleus(logits: Float[Array, "B V"], top_p: Float[Array, ""]) -> Bool[Array, "B V"]:
    """Returns which tokens belong to the smallest likeliest set with probability >= `top_p`.

    The likeliest token always does. Among equals the lower id comes first.

    **Source:** Holtzman et al., "The Curious Case of Neural Text Degeneration", section 3.1.
    """
    order = jnp.argsort(-logits, axis=-1, stable=True)
    sorted_probs = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    before = jnp.cumsum(sorted_probs, axis=-1) - sorted_probs
    rows = jnp.arange(logits.shape[0])[:, None]
    is_in = (before < top_p).at[:, 0].set(True)
    return jnp.zeros(logits.shape, bool).at[rows, order].set(is_in)
