"""What saves memory changes nothing else: remat, bfloat16 moments, Adafactor, frozen parameters."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from metamorph_jax.checkpoints.metadata import CheckpointMeta, library_versions
from metamorph_jax.checkpoints.naming import tree_fingerprint
from metamorph_jax.checkpoints.store import CheckpointStore
from metamorph_jax.config.schema_run import OptimizerConfig
from metamorph_jax.models.init import abstract_params
from metamorph_jax.optim.selection import TOKEN_TABLE, select
from metamorph_jax.training.memory import estimate_memory
from metamorph_jax.trees import flatten
from tests.tiny import tiny_batch, tiny_model, tiny_stage
from tests.tolerances import FLOAT32_REORDERED
from tests.training_setup import make_setup

BATCHES = [tiny_batch(seed) for seed in range(4)]


def model_with(**changes):
    model = tiny_model(dtype="bfloat16")
    return dataclasses.replace(model, llm=dataclasses.replace(model.llm, **changes))


def stage_with(frozen_dtype=None, **changes):
    optimizer = OptimizerConfig(**({"learning_rate": 1e-2, "warmup_ratio": 0.0} | changes))
    return tiny_stage(optimizer=optimizer, frozen_dtype=frozen_dtype)


CHOICES = {
    "moments": stage_with(moments="bfloat16"),
    "adafactor": stage_with(algorithm="adafactor"),
    "frozen": stage_with(frozen_dtype="bfloat16"),
}


@pytest.mark.parametrize("remat", ["dots", "attention", "full", "offload"])
def test_what_is_computed_again_changes_no_loss(remat):
    def losses(**changes):
        model = tiny_model()
        model = dataclasses.replace(model, llm=dataclasses.replace(model.llm, **changes))
        return [step["loss"] for step in make_setup(model, tiny_stage()).run(BATCHES)]

    np.testing.assert_allclose(
        losses(remat=remat), losses(remat="none"), rtol=0, atol=10 * FLOAT32_REORDERED
    )


def test_offloaded_residuals_leave_the_device():
    """Between the passes, what enters blocks is in the host's memory: rows, positions, width."""

    def text(remat):
        setup = make_setup(model_with(remat=remat), tiny_stage())
        with jax.set_mesh(setup.mesh):
            return str(setup.step.trace(setup.state, BATCHES[0]).jaxpr)

    assert "bf16<host>[8,24,16]" in text("offload")
    assert "<host>" not in text("full")


@pytest.mark.parametrize("name", CHOICES)
def test_it_learns_and_resumes_exactly(name, tmp_path):
    stage, model = CHOICES[name], model_with(remat="full")
    whole = make_setup(model, stage, (1, 2, 1))
    history = whole.run(BATCHES * 2)
    assert history[-1]["loss"] < history[0]["loss"]

    first = make_setup(model, stage, (1, 2, 1))
    first.run(BATCHES)
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    store.save(4, first.state, meta_of(first.state))
    store.wait()
    second = make_setup(model, stage, (1, 2, 1))
    second.state = store.restore(second.layout.abstract, None)[0]
    second.run(BATCHES)
    ours, expected = flatten(jax.device_get(second.state)), flatten(jax.device_get(whole.state))
    assert ours.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(ours[path], leaf, err_msg=path)
        assert ours[path].dtype == leaf.dtype, path


def meta_of(state):
    return CheckpointMeta(
        step=4,
        stage="vpit",
        stage_step=4,
        stage_total_steps=20,
        data_fingerprint="",
        seed=0,
        recipe="{}",
        model_fingerprint=tree_fingerprint(state.params),
        versions=library_versions(),
    )


def test_what_is_frozen_has_half_the_bytes_and_the_rest_stays():
    setup = make_setup(model_with(), CHOICES["frozen"])
    for path, leaf in flatten(setup.state.params).items():
        frozen = path.startswith("vision_tower")
        assert leaf.dtype == np.dtype("bfloat16" if frozen else "float32"), path


def test_a_table_with_trained_rows_is_not_rounded():
    stage = dataclasses.replace(CHOICES["frozen"], trained=("connector",))
    setup = make_setup(model_with(), stage, token_rows=(38, 39))
    params = flatten(setup.state.params)
    assert params[TOKEN_TABLE].dtype == np.float32
    assert params["language_model/lm_head/kernel"].dtype == np.dtype("bfloat16")


def test_means_of_adafactor_lie_like_their_parameters():
    model = model_with(embed_dim=256, mlp_dim=512)
    setup = make_setup(model, CHOICES["adafactor"], (1, 4, 2))
    path = "language_model/blocks/mlp/gate/kernel"  # layers, embed, mlp: fsdp, tensor
    rows = optax.tree.get(setup.state.opt_state, "v_row")[path]
    columns = optax.tree.get(setup.state.opt_state, "v_col")[path]
    assert rows.shape == (2, 256) and rows.sharding.shard_shape(rows.shape) == (2, 64)
    assert columns.shape == (2, 512) and columns.sharding.shard_shape(columns.shape) == (2, 256)


@pytest.mark.parametrize("name", [*CHOICES, "plain"])
def test_the_arithmetic_knows_the_state_to_the_byte(name):
    stage, model = CHOICES.get(name, stage_with()), model_with()
    setup = make_setup(model, stage)
    params = abstract_params(model)
    selection = select(params, stage.trained)
    parts = estimate_memory(model, stage, params, selection, setup.mesh.shape)
    leaves = jax.tree.leaves((setup.state.params, setup.state.opt_state))
    expected = parts["parameters"] + parts["optimiser"]
    assert sum(leaf.nbytes for leaf in leaves) == expected
