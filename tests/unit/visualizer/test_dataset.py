"""Reading the training files: what is refused, and which pictures a step sees."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from metamorph_jax.errors import UserError
from metamorph_jax.visualizer.dataset import load_picture_data, make_generator, read_tokens
from metamorph_jax.visualizer.latents import create_latents
from tests.visualizer_files import MODEL, write_data


def load(features, images, model=MODEL):
    return load_picture_data(features, images, model, create_latents(model.latents))


def rewrite(features, values=None, paths=None, name="features"):
    """Writes the features file again with other content."""
    values = load_file(features)["features"] if values is None else values
    metadata = None if paths is None else {"images": json.dumps(paths)}
    save_file({name: values}, features, metadata=metadata)


def test_pairs_each_feature_with_its_picture(tmp_path):
    features, images = write_data(tmp_path)
    data = load(features, images)
    assert torch.equal(data.tokens, torch.from_numpy(load_file(features)["features"]))
    third = torch.from_numpy(np.array(Image.open(images / "3.png")))[None]
    assert torch.allclose(data.latents[3:4], create_latents(MODEL.latents).encode(third))


def test_fingerprint_knows_features_and_paths(tmp_path):
    features, images = write_data(tmp_path)
    values = load_file(features)["features"]
    before = load(features, images).fingerprint
    assert load(features, images).fingerprint == before
    rewrite(features, values + 1e-6, [f"{index}.png" for index in range(10)])
    assert load(features, images).fingerprint != before
    rewrite(features, values, [f"{index}.png" for index in range(9, -1, -1)])
    assert load(features, images).fingerprint != before


def test_encoder_is_read_from_the_metadata(tmp_path):
    features, images = write_data(tmp_path)
    assert load(features, images).encoder_fingerprint is None
    metadata = {"images": json.dumps([f"{n}.png" for n in range(10)]), "encoder_fingerprint": "abc"}
    save_file(load_file(features), features, metadata)
    assert load(features, images).encoder_fingerprint == "abc"


def test_every_epoch_shows_every_picture_once_in_its_own_order(tmp_path):
    data = load(*write_data(tmp_path))
    seen = torch.cat([data.batch_indices(0, step, 4) for step in range(5)])  # two epochs of ten
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert torch.equal(data.batch_indices(0, 2, 4), seen[8:12])
    assert not torch.equal(data.batch_indices(1, 0, 10), seen[:10])
    assert len(data.batch_indices(0, 0, 25)) == 25


def test_generators_differ_in_every_number():
    draws = {
        torch.rand(1, generator=make_generator(*numbers)).item()
        for numbers in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    }
    assert len(draws) == 4


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.safetensors: no such file"):
        read_tokens(tmp_path / "none.safetensors", "features")


@pytest.mark.parametrize("content", [pickle.dumps({"features": [1.0]}), b"", b"\x10\0\0\0"])
def test_other_formats_are_not_read(tmp_path, content):
    file = tmp_path / "features.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"features\.safetensors: not a whole safetensors file"):
        read_tokens(file, "features")


def test_truncated_file_is_told(tmp_path):
    features, _ = write_data(tmp_path)
    features.write_bytes(features.read_bytes()[:-5])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_tokens(features, "features")


def test_wrong_tensor_name_lists_what_is_there(tmp_path):
    features, _ = write_data(tmp_path)
    with pytest.raises(UserError, match="no tensor 'feature'; it holds features; did you mean"):
        read_tokens(features, "feature")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.zeros((3, 24), np.float32), r"float32 \[3, 24\]; floats \[pictures, tokens, width\]"),
        (np.zeros((3, 4, 6), np.int32), r"int32 \[3, 4, 6\]; floats"),
        (np.zeros((0, 4, 6), np.float32), r"holds no picture \(\[0, 4, 6\]\)"),
    ],
)
def test_wrong_shapes_are_told(tmp_path, values, told):
    features, _ = write_data(tmp_path)
    rewrite(features, values)
    with pytest.raises(UserError, match=told):
        read_tokens(features, "features")


def test_nan_is_told_with_its_picture(tmp_path):
    features, _ = write_data(tmp_path)
    values = load_file(features)["features"]
    values[7, 1, 2] = np.nan
    rewrite(features, values)
    with pytest.raises(UserError, match="NaN or infinity in 'features' of picture 7"):
        read_tokens(features, "features")


def test_features_of_another_encoder_are_told(tmp_path):
    features, images = write_data(tmp_path)
    model = dataclasses.replace(MODEL, num_tokens=16, context_len=16, token_dim=96)
    with pytest.raises(UserError) as error:
        load(features, images, model)
    assert "4 visual tokens of width 6" in str(error.value)
    assert "num_tokens=16, token_dim=96" in str(error.value)


@pytest.mark.parametrize(
    ("paths", "told"),
    [
        (None, 'its metadata has no "images"'),
        ({"a": 1}, 'its metadata has no "images"'),
        ([f"{index}.png" for index in range(9)], "features of 10 pictures, but 9 image paths"),
        (["none.png"] + [f"{index}.png" for index in range(9)], "none.png: no such image"),
        (["../features.safetensors"] * 10, "leads out of --image_root"),
        (["broken.png"] * 10, "broken.png: not a readable image"),
        (["large.png"] * 10, "large.png: 9x7 pixels, expected 8x8"),
    ],
)
def test_unfit_pictures_are_told(tmp_path, paths, told):
    features, images = write_data(tmp_path)
    whole = (images / "0.png").read_bytes()
    (images / "broken.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (9, 7)).save(images / "large.png")
    rewrite(features, paths=paths)
    with pytest.raises(UserError) as error:
        load(features, images)
    assert told in str(error.value)
