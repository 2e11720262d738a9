"""Features from a checkpoint equal those of the model, whatever the batch size."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from metamorph_jax.decoding.features import Encoder
from metamorph_jax.errors import UserError
from metamorph_jax.models.metamorph import MetaMorph
from tests.tiny_run import tiny_config, write_tiny_run
from tests.tolerances import FLOAT32_REORDERED


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config()
    return folder, config, write_tiny_run(folder, config)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("batch_size", [2, 5, 8])
def test_features_are_the_models(run, pixels, batch_size):
    folder, config, params = run
    expected = MetaMorph(config.model).apply({"params": params}, pixels[:, None], method="encode")[
        :, 0
    ]
    features = Encoder.load(folder, batch_size=batch_size).encode(pixels, len(pixels))
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=FLOAT32_REORDERED, rtol=0)
    np.testing.assert_allclose(np.linalg.norm(features, axis=-1), 1.0, rtol=FLOAT32_REORDERED)


def test_files_are_encoded_in_order(run, pixels, tmp_path):
    folder, _, _ = run
    for index in range(3):
        Image.fromarray(pixels[index]).save(tmp_path / f"{index}.png")
    encoder = Encoder.load(folder, batch_size=2)
    features = encoder.encode_files(tmp_path, ["2.png", "0.png", "1.png"])
    np.testing.assert_array_equal(features, encoder.encode(pixels[[2, 0, 1]], 3))


def test_missing_image_is_named(run, tmp_path):
    with pytest.raises(UserError, match=r"train\.jsonl.*absent\.png"):
        Encoder.load(run[0]).encode_files(tmp_path, ["absent.png"], "train.jsonl")


def test_fingerprint_is_of_the_tower_alone(run, tmp_path):
    folder, config, params = run
    write_tiny_run(tmp_path, config, seed=1)
    mine = Encoder(config.model, params["vision_tower"]).fingerprint
    assert Encoder.load(folder).fingerprint == mine
    assert Encoder.load(tmp_path).fingerprint != mine


def test_fingerprint_is_the_same_for_parameters_in_the_dtype_of_activations(run):
    _, config, params = run
    model = dataclasses.replace(config.model, dtype="bfloat16")
    tower = params["vision_tower"]
    cast = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), tower)
    assert Encoder(model, tower).fingerprint == Encoder(model, cast).fingerprint
    assert Encoder(model, tower).fingerprint != Encoder(config.model, tower).fingerprint


def test_folder_without_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        Encoder.load(tmp_path)
