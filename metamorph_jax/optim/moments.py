"""AdamW's moments in bfloat16: half or three quarters of the optimiser's memory.

bfloat16 has 8 bits, so a stored number changes only by 0.4 % or more at once. The first moment
changes by a tenth of the gradient at every step (b1 = 0.9) and is rounded to the nearest. The
second changes by a thousandth (b2 = 0.999): rounded to the nearest, it would stay where it is and
never follow smaller gradients. It is rounded up or down at random instead, with the odds that make
the mean exact. The randomness is a function of the step and of the parameter's place among the
others, so that a resumed run draws the same.
"""

import jax
import jax.numpy as jnp
import optax

from metamorph_jax.typing import Array, Float, PyTree

_SEED = 0
_DROPPED_BITS = 16  # of float32, which bfloat16 does not have


def store_moments(adam: optax.GradientTransformation, moments: str) -> optax.GradientTransformation:
    """Returns `adam` with its state rounded between updates; each update computes in float32.

    Args:
        adam: from `optax.scale_by_adam`.
        moments: `bfloat16_first` or `bfloat16`, as in `OptimizerConfig`.
    """

    def init(params: PyTree) -> optax.ScaleByAdamState:
        return stored(adam.init(params))

    def update(updates: PyTree, state: optax.ScaleByAdamState, params: PyTree | None = None):
        wide = optax.tree.cast(state, jnp.float32)._replace(count=state.count)
        updates, wide = adam.update(updates, wide, params)
        return updates, stored(wide)

    def stored(state: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
        state = state._replace(mu=optax.tree.cast(state.mu, jnp.bfloat16))
        if moments == "bfloat16_first":
            return state
        key = jax.random.fold_in(jax.random.key(_SEED), state.count)
        leaves, structure = jax.tree.flatten(state.nu)
        rounded = [
            round_at_random(leaf, jax.random.fold_in(key, place))
            for place, leaf in enumerate(leaves)
        ]
        return state._replace(nu=jax.tree.unflatten(structure, rounded))

    return optax.GradientTransformation(init, update)


def round_at_random(x: Float[Array, "..."], key: jax.Array) -> Float[Array, "..."]:
    """Returns float32 `x` as bfloat16: one of the two nearest, so that the mean over keys is `x`.

    Args:
        x: not negative, and finite.
        key: of jax.random.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    bits = bits + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = (bits >> _DROPPED_BITS).astype(jnp.uint16)
    return jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
