"""One update: what moves, what stays, what is skipped, and how means are taken."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from metamorph_jax.config.schema_run import LossConfig, OptimizerConfig
from metamorph_jax.models.init import abstract_params, init_params
from metamorph_jax.optim.selection import NEW_ROWS, TOKEN_TABLE, select
from metamorph_jax.training.step import make_gradients
from metamorph_jax.trees import flatten
from tests.tiny import tiny_batch, tiny_model, tiny_stage
from tests.tolerances import FLOAT32_REORDERED, FLOAT32_REORDERED_GRADIENT
from tests.training_setup import make_setup


def host(tree) -> dict[str, np.ndarray]:
    return {path: np.array(leaf) for path, leaf in flatten(tree).items()}


def gradients_of(stage, batch, model=None, num_shards=1):
    model = model or tiny_model()
    params = init_params(model, jax.random.key(0))
    selection = select(params, stage.trained, stage.excluded)
    return jax.jit(make_gradients(model, stage, selection, num_shards))(params, batch)


def test_loss_falls_and_frozen_parameters_stay_bit_identical():
    setup = make_setup(tiny_model(), tiny_stage())
    before = host(setup.state.params)
    history = setup.run([tiny_batch(0)] * 10)
    after = host(setup.state.params)
    assert history[-1]["loss"] < history[0]["loss"] - 0.5
    for path in before:
        is_same = np.array_equal(before[path], after[path])
        assert is_same == path.startswith("vision_tower"), path
    assert int(setup.state.step) == 10


def test_bfloat16_compute_and_a_tied_head_train_over_float32_masters():
    model = tiny_model(dtype="bfloat16")
    model = dataclasses.replace(model, llm=dataclasses.replace(model.llm, tie_embeddings=True))
    setup = make_setup(model, tiny_stage())
    history = setup.run([tiny_batch(0)] * 10)
    assert history[-1]["loss"] < history[0]["loss"] - 0.5
    state = (setup.state.params, optax.tree.get(setup.state.opt_state, "mu"))
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {np.dtype("float32")}


def test_frozen_parameters_have_no_optimizer_state():
    setup = make_setup(tiny_model(), tiny_stage(trained=("connector",)))
    moments = optax.tree.get(setup.state.opt_state, "mu")
    assert set(moments) == {
        f"connector/layers_{layer}/{name}" for layer in (0, 1) for name in ("kernel", "bias")
    }


def test_only_the_two_new_token_rows_move_in_the_adapter_stage():
    stage = tiny_stage(trained=("connector",), loss=LossConfig(visual_weight=0.0))
    setup = make_setup(tiny_model(), stage, token_rows=(38, 39))
    before = host(setup.state.params)
    batch = tiny_batch(0)
    batch["tokens"][:, 11] = 38
    batch["tokens"][:, 17] = 39
    setup.run([batch] * 3)
    after = host(setup.state.params)
    moved = np.any(before[TOKEN_TABLE] != after[TOKEN_TABLE], axis=1)
    assert np.flatnonzero(moved).tolist() == [38, 39]
    assert optax.tree.get(setup.state.opt_state, "mu")[NEW_ROWS].shape == (2, 16)
    changed = {
        path.split("/")[0] for path in before if not np.array_equal(before[path], after[path])
    }
    assert changed == {"connector", "language_model"}


def test_visual_weight_zero_reports_the_visual_loss_without_adding_it():
    stage = tiny_stage(loss=LossConfig(visual_weight=0.0))
    loss, means, grads = gradients_of(stage, tiny_batch(0))
    np.testing.assert_allclose(loss, means["text"], atol=FLOAT32_REORDERED)
    assert means["visual"] == -means["cosine"] != 0
    assert all(np.all(grad == 0) for path, grad in grads.items() if path.startswith("vision_head"))


def test_batch_without_answer_images_has_visual_loss_zero_and_finite_gradients():
    loss, means, grads = gradients_of(tiny_stage(), tiny_batch(0, with_answer_images=False))
    assert means["visual"] == 0
    np.testing.assert_allclose(loss, means["text"], atol=FLOAT32_REORDERED)
    assert all(np.all(np.isfinite(grad)) for grad in grads.values())


@pytest.mark.parametrize("steps", [2, 4])
def test_accumulated_gradients_equal_those_of_one_large_batch(steps):
    batch = tiny_batch(1)
    loss, means, grads = gradients_of(tiny_stage(), batch)
    split_loss, split_means, split_grads = gradients_of(tiny_stage(grad_accum_steps=steps), batch)
    np.testing.assert_allclose(split_loss, loss, atol=FLOAT32_REORDERED)
    for name in means:
        np.testing.assert_allclose(split_means[name], means[name], atol=FLOAT32_REORDERED)
    for path, grad in grads.items():
        error = np.linalg.norm(split_grads[path] - grad)
        assert error <= FLOAT32_REORDERED_GRADIENT * np.linalg.norm(grad), path


def test_micro_batch_mean_is_the_mean_of_means():
    batch = tiny_batch(2)
    stage = tiny_stage(grad_accum_steps=2, loss=LossConfig(mean_over="micro_batch"))
    loss, _, _ = gradients_of(stage, batch)
    halves = [{name: array[part::2] for name, array in batch.items()} for part in (0, 1)]
    expected = np.mean([gradients_of(tiny_stage(), half)[0] for half in halves])
    np.testing.assert_allclose(loss, expected, atol=FLOAT32_REORDERED)
    assert abs(loss - gradients_of(tiny_stage(), batch)[0]) > 100 * FLOAT32_REORDERED


def test_micro_batches_follow_the_device_shards():
    batch = tiny_batch(2)
    stage = tiny_stage(loss=LossConfig(mean_over="micro_batch"))
    loss, _, _ = gradients_of(stage, batch, num_shards=2)
    halves = [
        {name: array[rows] for name, array in batch.items()} for rows in np.split(np.arange(8), 2)
    ]
    expected = np.mean([gradients_of(tiny_stage(), half)[0] for half in halves])
    np.testing.assert_allclose(loss, expected, atol=FLOAT32_REORDERED)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_an_update_that_is_not_finite_is_skipped_whole_and_counted(mesh):
    setup = make_setup(tiny_model(), tiny_stage(), mesh)
    setup.run([tiny_batch(0)])
    good = host(setup.state.params)
    moments = jax.device_get(setup.state.opt_state)
    # A weight of one shard becomes Inf: loss and gradients are poisoned everywhere.
    poisoned = jax.tree.map(lambda leaf: leaf, setup.state.params)
    kernel = poisoned["vision_head"]["layers_0"]["kernel"]
    poisoned["vision_head"]["layers_0"]["kernel"] = kernel.at[0, 0].set(np.inf)
    setup.state = setup.state.replace(params=poisoned)
    setup.state = jax.device_put(setup.state, setup.layout.shardings)
    history = setup.run([tiny_batch(1)] * 2)
    assert [step["skipped_in_a_row"] for step in history] == [1, 2]
    assert [step["skipped_steps"] for step in history] == [1, 2]
    assert history[0]["learning_rate"] == history[1]["learning_rate"]
    after = host(setup.state.params)
    changed = [path for path in good if not np.array_equal(good[path], after[path])]
    assert changed == ["vision_head/layers_0/kernel"]  # only what the test poisoned
    jax.tree.map(np.testing.assert_array_equal, moments, jax.device_get(setup.state.opt_state))
    assert int(setup.state.step) == 3


def test_a_good_update_resets_the_row_of_skips():
    setup = make_setup(tiny_model(), tiny_stage())
    setup.state = setup.state.replace(skipped_in_a_row=jax.numpy.int32(3))
    assert setup.run([tiny_batch(0)])[0]["skipped_in_a_row"] == 0


def test_learning_rate_follows_the_schedule():
    optimizer = OptimizerConfig(learning_rate=1.0, warmup_ratio=0.5)
    setup = make_setup(tiny_model(), tiny_stage(optimizer=optimizer, total_steps=8))
    rates = [metrics["learning_rate"] for metrics in setup.run([tiny_batch(0)] * 5)]
    np.testing.assert_allclose(rates, [0, 0.25, 0.5, 0.75, 1.0])


def test_no_recompilation_after_the_first_step():
    setup = make_setup(tiny_model(), tiny_stage())
    setup.run([tiny_batch(seed) for seed in range(4)])
    assert setup.step._cache_size() == 1


def test_contrastive_stage_trains_the_tower_alone():
    model = dataclasses.replace(tiny_model(), contrastive_dim=8)
    stage = tiny_stage(
        objective="contrastive",
        trained=("vision_tower", "contrastive"),
        loss=LossConfig(reconstruction_weight=1.0),
    )
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8),
        "tokens": rng.integers(0, 40, (8, 5), dtype=np.int32),
        "token_mask": np.ones((8, 5), bool),
        "caption_ids": np.array([0, 1, 2, 3, 0, 1, 2, 3], np.int32),
    }
    setup = make_setup(model, stage)
    before = host(setup.state.params)
    history = setup.run([batch] * 10)
    assert history[-1]["contrastive_loss"] < history[0]["contrastive_loss"]
    assert history[-1]["reconstruction_loss"] < history[0]["reconstruction_loss"]
    after = host(setup.state.params)
    changed = {
        path.split("/")[0] for path in before if not np.array_equal(before[path], after[path])
    }
    assert changed == {"vision_tower", "contrastive"}


def test_abstract_layout_matches_the_state():
    setup = make_setup(tiny_model(), tiny_stage())
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), setup.state)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), setup.layout.abstract)
    assert flatten(abstract_params(tiny_model())).keys() == flatten(setup.state.params).keys()


def test_a_model_without_vision_head_learns_from_text_alone():
    stage = tiny_stage(trained=("connector", "language_model"), loss=LossConfig(visual_weight=0.0))
    batch = tiny_batch(0, with_answer_images=False)
    loss, means, grads = gradients_of(stage, batch, tiny_model(vision_head="none"))
    with_head, _, same = gradients_of(stage, batch)
    assert set(means) == {"text"}
    np.testing.assert_allclose(loss, with_head, atol=FLOAT32_REORDERED)
    assert set(grads) == set(same)
    for path, grad in grads.items():
        error = np.linalg.norm(grad - same[path])
        assert error <= FLOAT32_REORDERED_GRADIENT * np.linalg.norm(same[path]), path
    setup = make_setup(tiny_model(vision_head="none"), stage, (2, 2, 2))
    history = setup.run([batch] * 3)
    assert history[-1]["loss"] < history[0]["loss"]
    assert "cosine" not in history[0] and "visual_loss" not in history[0]
