"""Reading the training files: what is refused, and which pictures a step sees."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from metamorph_jax.data.faults import BadSample
from metamorph_jax.errors import UserError
from metamorph_jax.visualizer.dataset import FeatureFiles, read_tokens
from tests.visualizer_files import MODEL, write_data


def load(features, model=MODEL):
    return FeatureFiles([features], model)


def rewrite(features, values=None, paths=None, name="features", **metadata):
    """Writes the features file again with other content."""
    values = load_file(features)["features"] if values is None else values
    if paths is not None:
        metadata["images"] = json.dumps(paths)
    save_file({name: values}, features, metadata=metadata or None)


@pytest.fixture
def features(tmp_path):
    return write_data(tmp_path).features[0]


NAMES = [f"{index}.png" for index in range(10)]


def test_rows_are_read_where_they_lie(features):
    files = load(features)
    values = torch.from_numpy(load_file(features)["features"])
    assert len(files) == 10
    assert all(torch.equal(files.row(index), values[index]) for index in (0, 3, 9))
    assert [files.names[index] for index in range(10)] == NAMES
    again = pickle.loads(pickle.dumps(files))  # as worker processes get it
    assert torch.equal(again.row(4), values[4])


def test_several_files_are_one(features, tmp_path):
    second = tmp_path / "second.safetensors"
    values = load_file(features)["features"]
    save_file({"features": values[:3] + 1}, second, {"images": json.dumps(["a", "b", "c"])})
    files = FeatureFiles([features, second], MODEL)
    assert len(files) == 13
    assert files.names[11] == "b"
    assert torch.equal(files.row(11), torch.from_numpy(values[1] + 1))
    assert torch.equal(files.row(9), torch.from_numpy(values[9]))


def test_half_precision_becomes_float32(features):
    rewrite(features, load_file(features)["features"].astype(np.float16), NAMES)
    assert load(features).row(0).dtype == torch.float32


def test_fingerprint_knows_features_and_paths(features):
    values = load_file(features)["features"]
    before = load(features).fingerprint
    assert load(features).fingerprint == before
    rewrite(features, values + 1e-6, NAMES)
    assert load(features).fingerprint != before
    rewrite(features, values, NAMES[::-1])
    assert load(features).fingerprint != before


def test_encoder_is_read_from_the_metadata(features, tmp_path):
    assert load(features).encoder_fingerprint is None
    rewrite(features, paths=NAMES, encoder_fingerprint="abc")
    assert load(features).encoder_fingerprint == "abc"
    other = tmp_path / "other.safetensors"
    other.write_bytes(features.read_bytes())
    rewrite(other, paths=NAMES, encoder_fingerprint="def")
    with pytest.raises(UserError, match="files of 2 encoders"):
        FeatureFiles([features, other], MODEL)


def test_features_of_another_view_are_refused(features):
    rewrite(features, paths=NAMES, view="squash")
    load(features)
    for view in ("same_crop", "pad"):
        other = dataclasses.replace(MODEL, view=view)
        with pytest.raises(UserError, match=f"features of view 'squash', .*view='{view}'"):
            load(features, other)
        rewrite(features, paths=NAMES, view=view)
        load(features, other)
        rewrite(features, paths=NAMES, view="squash")


def test_rows_that_are_not_finite_are_bad(features):
    values = load_file(features)["features"]
    values[7, 1, 2] = np.nan
    rewrite(features, values, NAMES)
    files = load(features)
    files.row(6)
    with pytest.raises(BadSample, match="NaN or infinity in 'features' of picture 7"):
        files.row(7)


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
    features = write_data(tmp_path).features[0]
    features.write_bytes(features.read_bytes()[:-5])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_tokens(features, "features")


def test_wrong_tensor_name_lists_what_is_there(tmp_path):
    features = write_data(tmp_path).features[0]
    with pytest.raises(UserError, match="no tensor 'feature'; it holds features; did you mean"):
        read_tokens(features, "feature")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.zeros((3, 24), np.float32), r"F32 \[3, 24\]; floats \[pictures, tokens, width\]"),
        (np.zeros((3, 4, 6), np.int32), r"I32 \[3, 4, 6\]; floats"),
        (np.zeros((0, 4, 6), np.float32), r"holds no picture \(\[0, 4, 6\]\)"),
    ],
)
def test_wrong_shapes_are_told(tmp_path, values, told):
    features = write_data(tmp_path).features[0]
    rewrite(features, values)
    with pytest.raises(UserError, match=told):
        read_tokens(features, "features")


def test_nan_is_told_with_its_picture(tmp_path):
    features = write_data(tmp_path).features[0]
    values = load_file(features)["features"]
    values[7, 1, 2] = np.nan
    rewrite(features, values)
    with pytest.raises(UserError, match="NaN or infinity in 'features' of picture 7"):
        read_tokens(features, "features")


def test_features_of_another_encoder_are_told(features):
    model = dataclasses.replace(MODEL, num_tokens=16, context_len=16, token_dim=96)
    with pytest.raises(UserError) as error:
        load(features, model)
    assert "4 visual tokens of width 6" in str(error.value)
    assert "num_tokens=16, token_dim=96" in str(error.value)


@pytest.mark.parametrize(
    ("paths", "told"),
    [
        (None, 'its metadata has no "images"'),
        ({"a": 1}, 'its metadata has no "images"'),
        (NAMES[:9], "features of 10 pictures, but 9 image paths"),
        (["a\nb", *NAMES[:9]], "an image path with a line break"),
    ],
)
def test_unfit_lists_are_told(features, paths, told):
    rewrite(features, paths=paths)
    with pytest.raises(UserError) as error:
        load(features)
    assert told in str(error.value)
