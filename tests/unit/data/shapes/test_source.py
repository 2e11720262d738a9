"""The world as a data source: paths, random access, fingerprints."""

import pickle

import pytest

from metamorph_jax.data.media import ImageBytes
from metamorph_jax.data.shapes.samples import KINDS
from metamorph_jax.data.shapes.source import ShapesPath, ShapesSource, parse_path
from metamorph_jax.errors import UserError


def test_paths():
    assert parse_path("shapes:image_qa/train") == ShapesPath("image_qa", "train", 10_000)
    assert parse_path("shapes:captions/heldout?count=7") == ShapesPath("captions", "heldout", 7)


@pytest.mark.parametrize(
    "path,expected",
    [
        ("shapes:train", "shapes:KIND/SPLIT"),
        ("shapes:image_qa/train?count=x", "shapes:KIND/SPLIT"),
        ("shapes:image_qa/train?size=4", "shapes:KIND/SPLIT"),
        ("shapes:imageqa/train", "did you mean 'image_qa'"),
        ("shapes:image_qa/test", "among train, validation, heldout"),
        ("shapes:image_qa/train?count=0", "at least one"),
    ],
)
def test_wrong_paths_say_what_was_expected(path, expected):
    with pytest.raises(UserError) as caught:
        ShapesSource(path)
    assert path in str(caught.value) and expected in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_records_by_number(kind):
    source = ShapesSource(f"shapes:{kind}/train?count=20")
    assert len(source) == 20 and len(list(source)) == 20
    record = source[4]
    assert record == source[4] and record != source[5]
    assert record.where == source.where(4) == f"shapes:{kind}/train?count=20:5"
    media = record.video if "video" in kind else record.images
    assert media and all(isinstance(image, ImageBytes) for image in media)
    with pytest.raises(IndexError):
        source[20]


def test_a_larger_count_only_adds_records():
    small, large = (ShapesSource(f"shapes:image_qa/heldout?count={n}") for n in (3, 30))
    assert [record.turns for record in small] == [large[index].turns for index in range(3)]
    assert small.fingerprint != large.fingerprint


def test_a_copy_in_another_process_is_the_same():
    source = ShapesSource("shapes:pure_video/train?count=5")
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint and copy[3] == source[3]
