"""Twenty steps on meshes of eight faked devices equal one device; every spec is as ruled."""

import dataclasses
from functools import partial

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from metamorph_jax.config.schema_run import OptimizerConfig
from metamorph_jax.trees import flatten
from tests.tiny import tiny_batch, tiny_model, tiny_stage
from tests.tolerances import FLOAT32_TRAINED
from tests.training_setup import make_setup

MESHES = [
    (8, 1, 1),
    (1, 8, 1),
    (2, 2, 2),
    (1, 4, 2),
    # With rows split over `context`, the last of four.
    (1, 2, 2, 2),
    (1, 1, 1, 8),
    (2, 1, 1, 4),
]
NUM_STEPS = 20
# Ten times the rate of real runs; more would only magnify rounding through Adam's division.
STAGE = tiny_stage(optimizer=OptimizerConfig(learning_rate=1e-3))


@pytest.fixture(scope="module")
def one_device():
    setup = make_setup(tiny_model(), STAGE)
    history = setup.run([tiny_batch(seed) for seed in range(NUM_STEPS)])
    return history, flatten(jax.device_get(setup.state.params))


@pytest.mark.parametrize("mesh", MESHES)
def test_meshes_equal_one_device(mesh, one_device):
    setup = make_setup(tiny_model(), STAGE, mesh)
    history = setup.run([tiny_batch(seed) for seed in range(NUM_STEPS)])
    expected, params = one_device
    for name in ("loss", "text_loss", "visual_loss"):
        ours = [step[name] for step in history]
        np.testing.assert_allclose(ours, [step[name] for step in expected], atol=FLOAT32_TRAINED)
    for path, leaf in flatten(jax.device_get(setup.state.params)).items():
        np.testing.assert_allclose(leaf, params[path], atol=FLOAT32_TRAINED, err_msg=path)
    assert setup.step._cache_size() == 1


def mixed_batch(seed):
    """Returns a batch whose visual tokens are means of two, with a newline in each image."""
    batch = tiny_batch(seed)
    is_visual = batch["visual_index"] >= 0
    first = np.where(is_visual, batch["visual_index"] // 2 * 2, -1)
    batch["visual_sources"] = np.stack([first, np.where(is_visual, first + 1, -1)] * 2, axis=-1)
    batch["visual_weights"] = np.repeat(is_visual[..., None] * np.float32(0.25), 4, axis=-1)
    batch["visual_index"][:, [4, 15]] = -2
    return batch


def test_newlines_and_mixtures_on_a_mesh():
    model, trained = tiny_model(image_newline=True), (*STAGE.trained, "image_newline")
    stage, results = dataclasses.replace(STAGE, trained=trained), []
    for mesh in ((1, 1, 1), (2, 2, 2)):
        setup = make_setup(model, stage, mesh)
        losses = [step["loss"] for step in setup.run([mixed_batch(seed) for seed in range(3)])]
        newline = setup.state.params["image_newline"]["embedding"]
        results.append((losses, np.asarray(newline)))
    assert newline.sharding.spec == P("fsdp")
    np.testing.assert_allclose(results[1][0], results[0][0], atol=FLOAT32_TRAINED)
    np.testing.assert_allclose(results[1][1], results[0][1], atol=FLOAT32_TRAINED)


def test_parameters_gradients_and_moments_lie_as_ruled():
    setup = make_setup(tiny_model(), tiny_stage(), (2, 2, 2))
    setup.run([tiny_batch(0)])
    params = {path: leaf.sharding.spec for path, leaf in flatten(setup.state.params).items()}
    block = "language_model/blocks/"
    assert params["language_model/embed_tokens/embedding"] == P("tensor", "fsdp")
    assert params["language_model/lm_head/kernel"] == P("fsdp", "tensor")
    assert params[block + "attention/query/kernel"] == P(None, "fsdp", "tensor")
    assert params[block + "attention/out/kernel"] == P(None, "tensor", None, "fsdp")
    assert params[block + "mlp/gate/kernel"] == P(None, "fsdp", "tensor")
    assert params[block + "mlp/down/kernel"] == P(None, "tensor", "fsdp")
    for name in ("mu", "nu"):
        for path, leaf in optax.tree.get(setup.state.opt_state, name).items():
            assert leaf.sharding.is_equivalent_to(
                jax.sharding.NamedSharding(setup.mesh, params[path]), leaf.ndim
            ), (name, path)
    for path, sharding in setup.layout.trained.items():
        assert sharding.spec == params[path], path
    assert setup.state.step.sharding.is_fully_replicated


@pytest.mark.parametrize("mesh", MESHES)
def test_gradients_lie_as_their_parameters(mesh):
    model, found = tiny_model(), {}

    def look(updates, params):
        """Asks the compiler where it put each gradient that reaches the optimiser."""
        del params
        for path, gradient in updates.items():
            jax.debug.inspect_array_sharding(gradient, callback=partial(found.__setitem__, path))
        return updates

    setup = make_setup(model, STAGE, mesh, first=optax.stateless(look))
    setup.run([tiny_batch(0)])
    params = flatten(setup.state.params)
    assert found.keys() == setup.layout.trained.keys()
    for path, sharding in found.items():
        assert sharding.is_equivalent_to(params[path].sharding, params[path].ndim), path
    is_whole = [params[path].sharding.is_fully_replicated for path in found]
    assert not all(is_whole) or mesh == (8, 1, 1)  # which replicates everything


def test_each_device_holds_only_its_share():
    model = dataclasses.replace(tiny_model())
    setup = make_setup(model, tiny_stage(), (1, 4, 2))
    kernel = setup.state.params["language_model"]["blocks"]["mlp"]["gate"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size
