"""How closely media are looked at: decoded, by their headers, or not at all."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.images import ImageLoader
from metamorph_jax.data.lint.findings import short_hash
from metamorph_jax.data.lint.media import Looked, MediaReader
from metamorph_jax.data.media import Crop, ImageBytes, VideoFrame


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.png").write_bytes(png(30, 20))
    (tmp_path / "cut.png").write_bytes(png(30, 20)[:-60])
    (tmp_path / "words.png").write_text("words")
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    return tmp_path


def look(folder, depth, *medias):
    reader = MediaReader(ImageLoader(str(folder), 16), depth)
    return [
        found.reason if isinstance(found, BadSample) else found
        for found in reader.look(medias, "f:1")
    ]


FILES = ("a.png", "cut.png", "words.png", "huge.png", "gone.png", "/etc/passwd")


def test_decoding_sees_everything(folder):
    assert look(folder, "decode", *FILES) == [
        Looked((30, 20), short_hash((folder / "a.png").read_bytes())),
        "unreadable_media",
        "unreadable_media",
        "too_large_media",
        "missing_media",
        "forbidden_path",
    ]


def test_headers_see_everything_but_what_is_behind_them(folder):
    good = Looked((30, 20), 0)
    found = look(folder, "headers", *FILES)
    assert found[:2] == [good, good]
    assert found[2:] == ["unreadable_media", "too_large_media", "missing_media", "forbidden_path"]


def test_none_opens_nothing(folder):
    assert look(folder, "none", *FILES) == [Looked(None, 0)] * 6


@pytest.mark.parametrize("depth", ["decode", "headers"])
def test_bytes_in_the_row(folder, depth):
    data = png(5, 6)
    assert look(folder, depth, ImageBytes(data)) == [Looked((5, 6), short_hash(data))]
    assert look(folder, depth, ImageBytes(b"none")) == ["unreadable_media"]


def test_parts_are_opened_as_training_does(folder):
    good, bad = Crop("a.png", (0, 0, 9, 9)), Crop("cut.png", (0, 0, 9, 9))
    assert look(folder, "decode", good, "a.png")[0] == Looked(None, 0)
    assert look(folder, "decode", bad) == ["unreadable_media"]
    assert look(folder, "decode", VideoFrame("gone", 0.0)) == ["missing_media"]
    assert look(folder, "headers", bad) == [Looked(None, 0)]


def test_each_record_hears_of_a_shared_broken_image(folder):
    reader = MediaReader(ImageLoader(str(folder), 16), "decode")
    for where in ("f:1", "f:2"):
        (found,) = reader.look(("cut.png",), where)
        assert str(found).startswith(f"{where}: image 'cut.png'")


def test_a_file_is_opened_once_and_workers_start_afresh(folder):
    reader = MediaReader(ImageLoader(str(folder), 16), "decode")
    first = reader.look(("a.png",), "f:1")
    (folder / "a.png").unlink()
    assert reader.look(("a.png",), "f:2") == first
    copy = pickle.loads(pickle.dumps(reader))
    assert isinstance(copy.look(("a.png",), "f:3")[0], BadSample)
