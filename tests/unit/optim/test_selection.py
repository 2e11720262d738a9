"""Which parameters are trained."""

import jax
import numpy as np
import optax
import pytest

from metamorph_jax.config.schema_run import OptimizerConfig
from metamorph_jax.errors import UserError
from metamorph_jax.optim.optimizer import make_optimizer
from metamorph_jax.optim.selection import NEW_ROWS, TOKEN_TABLE, select
from metamorph_jax.trees import flatten, unflatten


def params():
    return {
        "connector": {"layers_0": {"kernel": np.ones((2, 3)), "bias": np.zeros(3)}},
        "connector_two": {"kernel": np.ones(1)},
        "language_model": {"embed_tokens": {"embedding": np.arange(8.0).reshape(4, 2)}},
    }


def test_prefixes_match_whole_components():
    assert select(params(), ["connector"]).paths == {
        "connector/layers_0/kernel",
        "connector/layers_0/bias",
    }
    assert len(select(params(), ["/"], ["connector"]).paths) == 2


def test_merge_puts_back_what_split_took_and_touches_nothing_else():
    selection = select(params(), ["connector"], token_rows=(1, 3))
    tree = jax.tree.map(jax.numpy.asarray, params())
    trained = selection.split(tree)
    assert trained[NEW_ROWS].tolist() == [[2, 3], [6, 7]]
    merged = selection.merge(tree, {path: value + 10 for path, value in trained.items()})
    assert merged["connector"]["layers_0"]["bias"].tolist() == [10, 10, 10]
    table = flatten(merged)[TOKEN_TABLE]
    assert table.tolist() == [[0, 1], [12, 13], [4, 5], [16, 17]]
    assert merged["connector_two"]["kernel"].tolist() == [1]


def test_unflatten_inverts_flatten():
    assert jax.tree.map(np.shape, unflatten(flatten(params()))) == jax.tree.map(np.shape, params())


def test_a_prefix_without_parameters_is_an_error_with_near_names():
    with pytest.raises(UserError, match=r"s\.trained: 'conector'.*did you mean connector"):
        select(params(), ["conector"], where="s")
    with pytest.raises(UserError, match="trains nothing"):
        select(params(), [])


def test_multipliers_scale_updates_by_prefix():
    config = OptimizerConfig(
        learning_rate=1.0, warmup_ratio=0.0, multipliers={"a": 10.0}, max_grad_norm=None
    )
    values = {"a/kernel": jax.numpy.ones(2), "b/kernel": jax.numpy.ones(2)}
    optimizer = make_optimizer(config, 10, 1, list(values))
    updates, _ = optimizer.update(values, optimizer.init(values), values)
    np.testing.assert_allclose(updates["a/kernel"], 10 * updates["b/kernel"])
    with pytest.raises(UserError, match="'c' is no prefix"):
        make_optimizer(
            OptimizerConfig(learning_rate=1.0, multipliers={"c": 2.0}), 10, 1, list(values)
        )


def test_decay_spares_biases_and_norms():
    config = OptimizerConfig(learning_rate=1.0, warmup_ratio=0.0, weight_decay=0.1)
    values = {name: jax.numpy.ones(2) for name in ("x/kernel", "x/bias", "norm/scale")}
    optimizer = make_optimizer(config, 10, 1, list(values))
    zeros = jax.tree.map(jax.numpy.zeros_like, values)
    updates, _ = optimizer.update(zeros, optimizer.init(values), values)
    new = optax.apply_updates(values, updates)
    np.testing.assert_allclose(new["x/kernel"], 0.9, rtol=1e-6)
    np.testing.assert_allclose(new["x/bias"], 1.0)
    np.testing.assert_allclose(new["norm/scale"], 1.0)
