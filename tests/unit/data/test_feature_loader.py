"""Images by content: what makes a key, and what happens to images that have no features."""

import os

import numpy as np
import pytest
from PIL import Image

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.feature_loader import FeatureLoader, feature_key
from metamorph_jax.data.feature_store import FeatureStore, FeatureWriter
from metamorph_jax.data.images import ImageLoader
from metamorph_jax.data.media import Boxed, Crop, ImageBytes, NamedBox, VideoFrame
from metamorph_jax.errors import UserError
from tests.data_files import write_images

WHERE = "data.jsonl:7"
FEATURES = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture
def images(tmp_path):
    write_images(tmp_path / "images", 3, size=8)
    return ImageLoader(str(tmp_path / "images"), 8)


def key(media, loader):
    return feature_key(media, loader, WHERE)


def loader_of(tmp_path, images, *medias):
    """Returns a loader of features of these media alone."""
    with FeatureWriter(tmp_path / "cache", "e" * 64, "float32", FEATURES.shape) as out:
        for number, media in enumerate(medias):
            out.add(key(media, images), FEATURES + number)
    return FeatureLoader(FeatureStore(tmp_path / "cache"), images)


def test_content_makes_the_key_not_the_name(tmp_path, images):
    folder = tmp_path / "images"
    data = (folder / "0.png").read_bytes()
    (folder / "copy.png").write_bytes(data)
    same = {key(media, images) for media in ("0.png", "copy.png", ImageBytes(data, "elsewhere"))}
    assert len(same) == 1 and len(same.pop()) == 32
    assert key("0.png", images) != key("1.png", images)
    before = key("2.png", images)
    (folder / "2.png").write_bytes(data)
    assert key("2.png", images) == key("0.png", images) != before


def test_everything_that_changes_the_pixels_changes_the_key(tmp_path, images):
    whole = "0.png"
    padded = ImageLoader(images.root, 8, "pad")
    keys = [
        key(whole, images),
        key(whole, padded),
        key("1.png", images),
        key(Crop(whole, (0.0, 0.0, 4.0, 4.0)), images),
        key(Crop(whole, (0.0, 0.0, 4.0, 5.0)), images),
        key(Crop("1.png", (0.0, 0.0, 4.0, 4.0)), images),
        key(Boxed(whole, (NamedBox((0.0, 0.0, 4.0, 4.0)),)), images),
        key(Boxed(whole, (NamedBox((0.0, 0.0, 4.0, 4.0), "cat"),)), images),
        key(VideoFrame(whole, 0.0), images),
        key(VideoFrame(whole, 1.0), images),
    ]
    assert len(set(keys)) == len(keys)


def test_a_folder_of_frames_is_known_by_all_its_frames(tmp_path, images):
    folder = tmp_path / "images" / "video"
    write_images(folder, 2)
    first = key(VideoFrame("video", 0.0), images)
    assert first != key(VideoFrame("video", 1.0), images)
    folder.rename(tmp_path / "images" / "renamed")
    assert key(VideoFrame("renamed", 0.0), images) == first
    write_images(tmp_path / "images" / "renamed", 3)
    assert key(VideoFrame("renamed", 0.0), images) != first


def test_features_come_in_the_order_of_the_media(tmp_path, images):
    crop = Crop("0.png", (0.0, 0.0, 4.0, 4.0))
    loader = loader_of(tmp_path, images, "0.png", crop, "1.png")
    found = loader.load_all(["1.png", "0.png", crop, "1.png"], WHERE)
    for values, number in zip(found, (2, 0, 1, 2), strict=True):
        np.testing.assert_array_equal(values, FEATURES + number)
    assert loader.load_all([], WHERE) == []


def test_an_image_without_features_is_named_with_what_to_do(tmp_path, images):
    loader = loader_of(tmp_path, images, "0.png")
    with pytest.raises(UserError) as error:
        loader.load_all(["0.png", "1.png"], WHERE)
    assert not isinstance(error.value, BadSample)
    assert f"{WHERE}: image '1.png' is not among the 1 of the feature cache" in str(error.value)
    assert "image_geometry='square'); run cache_features again" in str(error.value)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "images" / "0.png")
    with pytest.raises(UserError, match="added or changed since"):
        loader.load_all(["0.png"], WHERE)


def test_a_bad_image_is_as_bad_as_without_a_cache(tmp_path, images):
    folder = tmp_path / "images"
    whole = (folder / "0.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    loader = loader_of(tmp_path, images, "0.png")
    bad = ["half.png", "absent.png", "../cache", Crop("0.png", (9.0, 9.0, 10.0, 10.0))]
    for media in bad:
        with pytest.raises(BadSample) as ours:
            loader.load_all([media], WHERE)
        with pytest.raises(BadSample) as theirs:
            images.load_all([media], WHERE)
        ours, theirs = ours.value, theirs.value
        assert (ours.reason, ours.sha256) == (theirs.reason, theirs.sha256)
        assert str(ours).startswith(WHERE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_a_bad_sample(tmp_path, images):
    loader = loader_of(tmp_path, images, "0.png")
    (tmp_path / "images" / "1.png").chmod(0)
    with pytest.raises(BadSample, match="cannot be read, Permission denied"):
        loader.load_all(["1.png"], WHERE)
