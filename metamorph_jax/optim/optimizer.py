"""The optimiser of the trained part: clip, AdamW or Adafactor, per-prefix factors, schedule."""

import optax

from metamorph_jax.config.schema_run import OptimizerConfig
from metamorph_jax.errors import UserError
from metamorph_jax.optim.moments import store_moments
from metamorph_jax.optim.schedule import make_schedule

_DECAYED = ("kernel", "embedding")  # as usual, biases and norms are not decayed


def make_optimizer(
    config: OptimizerConfig, total_steps: int, batch_size: int, paths: list[str]
) -> optax.GradientTransformation:
    """Returns the optimiser for the trained parameters called `paths`.

    Args:
        config: the stage's optimiser.
        total_steps: of the stage; the schedule ends at zero there.
        batch_size: examples per step, for the square-root rule.
        paths: names of the trained parameters, as in `Selection.split`.

    Raises:
        UserError: a learning-rate multiplier's prefix matches no trained parameter.
    """
    clip = optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm else None
    decay = {path: path.partition("@")[0].endswith(_DECAYED) for path in paths}
    steps = [
        clip,
        *_SCALING[config.algorithm](config),
        optax.add_decayed_weights(config.weight_decay, decay) if config.weight_decay else None,
        _scale_by_prefix(config.multipliers, paths) if config.multipliers else None,
        optax.scale_by_learning_rate(make_schedule(config, total_steps, batch_size)),
    ]
    return optax.chain(*[step for step in steps if step is not None])


def _adam(config: OptimizerConfig) -> list[optax.GradientTransformation]:
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    return [adam if config.moments == "float32" else store_moments(adam, config.moments)]


def _adafactor(config: OptimizerConfig) -> list[optax.GradientTransformation]:
    """Returns Adafactor without a first moment, its step sizes not scaled by the parameters.

    A learning rate then means what it means to AdamW: the typical change of a number.
    Source: Shazeer and Stern, arXiv 1804.04235, algorithm 4 (clipping threshold 1).
    """
    return [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)]


_SCALING = {"adamw": _adam, "adafactor": _adafactor}


def _scale_by_prefix(
    multipliers: dict[str, float], paths: list[str]
) -> optax.GradientTransformation:
    """Scales each update by the factor of its longest matching prefix (1 without any)."""
    for prefix in multipliers:
        if not any(path.startswith(prefix) for path in paths):
            raise UserError(
                f"optimizer.multipliers: {prefix!r} is no prefix of a trained parameter; "
                f"trained: {', '.join(sorted({path.split('/')[0] for path in paths}))}"
            )
    factors = {
        path: multipliers[max(hits, key=len)] if hits else 1.0
        for path in paths
        for hits in [[prefix for prefix in multipliers if path.startswith(prefix)]]
    }
    return optax.stateless(
        lambda updates, params: {path: update * factors[path] for path, update in updates.items()}
    )
