"""Golden case E: pixels -> tower states -> token reduction -> normalisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metamorph_jax.hub import siglip
from metamorph_jax.models.vit import VisionTower
from metamorph_jax.ops.normalize import l2_normalize
from metamorph_jax.ops.resample import reduce_tokens
from tests import golden_model, tolerances
from tests.golden_data import load_case

pytestmark = pytest.mark.golden
TEMPERATURE = 0.07
OFFERED = ("interpolation", "concat_interpolation")


@functools.cache
def load():
    return load_case("E_vision_features")


def close(ours, theirs):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=tolerances.GOLDEN)


@functools.cache
def tower_states(layer: int) -> jax.Array:
    fields, tensors = load()
    config = golden_model.vision_config(fields["vision"], layer)
    prefix = "weights/vision_tower."
    stored = golden_model.with_prefix(tensors, prefix)
    stored = {name: t for name, t in stored.items() if "mixer" not in name}
    params = siglip.from_hf(stored, config)
    pixels = golden_model.channels_last(tensors["inputs/pixel_values"])
    return VisionTower(config, jnp.dtype("float32"), jnp.dtype("float32")).apply(
        {"params": params}, pixels
    )


@pytest.mark.parametrize("layer", [0, 1, 2, 3, -1, -2, -4])
def test_tower_states(layer):
    _, tensors = load()
    index = layer if layer >= 0 else 4 + layer
    close(tower_states(layer), tensors[f"outputs/hidden_states.{index}"])


def reductions():
    fields, _ = load()
    return [entry for entry in fields["reductions"] if entry["mode"] in OFFERED]


def test_every_offered_reduction_is_there():
    assert {entry["mode"] for entry in reductions()} == set(OFFERED)


@pytest.mark.parametrize("number", range(8))
def test_reduction(number):
    _, tensors = load()
    entry = reductions()[number]
    states = tower_states(entry["select_layer"])
    reduced = reduce_tokens(states, entry["mode"], entry["num_image_tokens"])
    assert reduced.shape == tuple(entry["shape"])
    close(reduced, tensors[f"outputs/reduced/{entry['name']}"])
    normalised = l2_normalize(reduced)
    close(normalised, tensors[f"outputs/normalised/{entry['name']}"])
    softmaxed = tensors.get(f"outputs/softmax_of_normalised/{entry['name']}")
    if softmaxed is not None:
        close(jax.nn.softmax(normalised / TEMPERATURE, axis=-1), softmaxed)


def test_grid_of_27():
    _, tensors = load()
    states = tensors["grid27/inputs/hidden_states"]
    reduced = reduce_tokens(states, "interpolation", 64)
    close(reduced, tensors["grid27/outputs/reduced/interpolation_64"])
    close(l2_normalize(reduced), tensors["grid27/outputs/normalised/interpolation_64"])
    concatenated = reduce_tokens(states, "concat_interpolation", 64)
    close(concatenated, tensors["grid27/outputs/reduced/concat_interpolation_64"])
