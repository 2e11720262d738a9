"""The loader: media of every kind, the cache, what worker processes get.

Damaged and hostile files: tests/reliability/test_d1... to test_d8...
"""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from metamorph_jax.data import image_files
from metamorph_jax.data import images as module
from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.images import ImageLoader
from metamorph_jax.data.media import Boxed, Crop, ImageBytes, NamedBox, VideoFrame

RED, SIZE, WHERE = (200, 10, 30), 6, "data.jsonl:7"


def png_bytes(color=RED, size=(SIZE, SIZE)):
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def root(tmp_path):
    """An image of one colour, one with a blue right half, and a folder of frames."""
    folder = tmp_path / "images"
    (folder / "film").mkdir(parents=True)
    (folder / "red.png").write_bytes(png_bytes())
    halves = Image.new("RGB", (20, 10), "red")
    halves.paste((0, 0, 255), (10, 0, 20, 10))
    halves.save(folder / "halves.png")
    for index in range(3):
        Image.new("RGB", (SIZE, SIZE), (index, 0, 0)).save(folder / "film" / f"{index:04}.png")
    return folder


@pytest.fixture
def opened(monkeypatch):
    """The names of all images that are decoded."""
    names = []
    real = image_files.decode

    def counting(data, name):
        names.append(name)
        return real(data, name)

    monkeypatch.setattr(image_files, "decode", counting)
    return names


def refusal(root, media):
    with pytest.raises(BadSample) as caught:
        ImageLoader(str(root), SIZE).load(media, WHERE)
    assert str(caught.value).startswith(f"{WHERE}: image ")
    return caught.value


def test_path(root):
    pixels = ImageLoader(str(root), SIZE).load("red.png", WHERE)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.full((SIZE, SIZE, 3), RED, np.uint8))


def test_bytes_in_the_row(root):
    loader = ImageLoader(str(root), SIZE)
    media = ImageBytes(png_bytes(), "image[0]")
    np.testing.assert_array_equal(loader.load(media, WHERE), loader.load("red.png", WHERE))


def test_broken_bytes_in_the_row(root):
    error = refusal(root, ImageBytes(b"GIF89a", "image[3]"))
    assert error.reason == "unreadable_media"
    assert "image[3] (6 bytes in the row) cannot be decoded" in str(error)
    assert error.sha256 == image_files.content_hash(b"GIF89a")


def test_crop(root):
    loader = ImageLoader(str(root), SIZE)
    left, right = Crop("halves.png", (0, 0, 10, 10)), Crop("halves.png", (10, 2.4, 19.6, 10))
    assert (loader.load(left, WHERE) == (255, 0, 0)).all()
    assert (loader.load(right, WHERE) == (0, 0, 255)).all()


def test_crop_of_bytes(root):
    media = Crop(ImageBytes((root / "halves.png").read_bytes()), (10, 0, 20, 10))
    assert (ImageLoader(str(root), SIZE).load(media, WHERE) == (0, 0, 255)).all()


def test_boxed(root):
    media = Boxed("red.png", (NamedBox((0, 0, SIZE, SIZE)),))
    pixels = ImageLoader(str(root), SIZE).load(media, WHERE)
    assert (pixels[0] == (255, 0, 0)).all()


@pytest.mark.parametrize("media", [Crop("red.png", (9, 9, 12, 12)), Crop("red.png", (2, 2, 2, 5))])
def test_box_without_pixels(media, root):
    error = refusal(root, media)
    assert error.reason == "malformed_record"
    assert "holds no pixel of its 6x6" in str(error)


def test_frames_of_a_video_in_the_order_asked_for(root):
    frames = [VideoFrame("film", seconds) for seconds in (2.0, 0.0, 1.0)]
    medias = [frames[0], "red.png", *frames[1:]]
    pixels = ImageLoader(str(root), SIZE).load_all(medias, WHERE)
    assert [image[0, 0, 0] for image in pixels] == [2, RED[0], 0, 1]


def test_a_video_is_not_looked_for_outside(root):
    with pytest.raises(BadSample) as caught:
        ImageLoader(str(root), SIZE).load(VideoFrame("../images/../film", 0.0), WHERE)
    assert caught.value.reason == "forbidden_path"
    assert str(caught.value).startswith(f"{WHERE}: video ")


def test_the_whole_is_decoded_once_for_all_its_parts(root, opened):
    crops = [Crop("halves.png", (x, 0, x + 5, 5)) for x in range(5)]
    medias = [crops[0], "red.png", "halves.png", *crops[1:], crops[2], "red.png"]
    pixels = ImageLoader(str(root), SIZE).load_all(medias, WHERE)
    assert len(pixels) == len(medias)
    assert sorted(opened) == [f"{WHERE}: image 'halves.png'", f"{WHERE}: image 'red.png'"]
    np.testing.assert_array_equal(pixels[1], pixels[-1])


def test_one_bad_image_is_named(root):
    with pytest.raises(BadSample) as caught:
        ImageLoader(str(root), SIZE).load_all(["red.png", "gone.png"], WHERE)
    assert caught.value.reason == "missing_media"
    assert "'gone.png'" in str(caught.value)


@pytest.mark.parametrize("processor", ["siglip", "clip"])
def test_processor_of_the_family(processor, root):
    """The squashed image shows both halves, its middle square ends at the border between them."""
    wide = Image.new("RGB", (30, 10), "red")
    wide.paste((0, 0, 255), (0, 0, 9, 10))
    wide.save(root / "wide.png")
    loader = ImageLoader(str(root), 10, processor=processor)
    pixels = loader.load("wide.png", WHERE)
    assert (pixels[..., 2] > 200).any() == (processor == "siglip")


def test_cache_serves_equal_pixels_that_nobody_can_change(root):
    loader = ImageLoader(str(root), SIZE)
    first = loader.load("red.png", "f:1")
    (root / "red.png").unlink()
    assert loader.load("red.png", "f:2") is first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0


def test_worker_processes_get_settings_and_no_pixels(root):
    loader = ImageLoader(str(root), SIZE, "pad", (1, 2, 3), "clip")
    loader.load("red.png", "f:1")
    (root / "red.png").unlink()
    copy = pickle.loads(pickle.dumps(loader))
    settings = ("root", "size", "geometry", "pad_color", "processor")
    assert [getattr(copy, name) for name in settings] == [
        getattr(loader, name) for name in settings
    ]
    with pytest.raises(BadSample, match="f:3"):
        copy.load("red.png", "f:3")


def test_cache_is_bounded(root, monkeypatch):
    monkeypatch.setattr(module, "_CACHE_BYTES", 2 * SIZE * SIZE * 3)
    loader = ImageLoader(str(root), SIZE)
    used_again = loader.load("red.png", "f:1")
    for index in range(4):
        Image.new("RGB", (SIZE, SIZE), (index, 0, 0)).save(root / f"{index}.png")
        loader.load(f"{index}.png", "f:1")
        assert loader.load("red.png", "f:1") is used_again
    assert [path for _, path in loader._cache] == ["3.png", "red.png"]


@pytest.mark.parametrize(
    ("known", "name"),
    [
        (VideoFrame("film", 1.0), "film@1.0"),
        (Crop("red.png", (0, 0, 3, 3)), "red.png#crop(0, 0, 3, 3)"),
        (ImageBytes(png_bytes()), "sha256:" + image_files.content_hash(png_bytes())),
    ],
)
def test_a_path_never_names_something_else_in_the_cache(known, name, root):
    loader = ImageLoader(str(root), SIZE)
    loader.load(known, WHERE)
    with pytest.raises(BadSample, match="No such file"):
        loader.load(name, WHERE)


def test_read_bytes(root):
    loader = ImageLoader(str(root), SIZE)
    assert loader.read_bytes("red.png", WHERE) == (root / "red.png").read_bytes()
    assert loader.read_bytes(ImageBytes(b"anything"), WHERE) == b"anything"
    with pytest.raises(BadSample) as caught:
        loader.read_bytes("../red.png", WHERE)
    assert caught.value.reason == "forbidden_path"


def test_a_machine_without_memory_is_no_damaged_orientation_tag(monkeypatch):
    def fail(self):
        raise MemoryError

    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, "PNG")
    monkeypatch.setattr(Image.Image, "getexif", fail)
    with pytest.raises(MemoryError):
        image_files.decode(data.getvalue(), "a.png")
