import io
import os
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from metamorph_jax.data import images as module
from metamorph_jax.data.images import GREY, ImageLoader, pad_color
from metamorph_jax.errors import UserError

RED, SIZE = (200, 10, 30), 6


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (SIZE, SIZE), RED).save(folder / "red.png")
    Image.new("RGB", (SIZE, SIZE), RED).save(tmp_path / "secret.png")
    return folder


def load(root, name, size=SIZE, geometry="square"):
    return ImageLoader(str(root), size, geometry).load(name, "data.jsonl:7")


def refusal(root, name):
    with pytest.raises(UserError) as caught:
        load(root, name)
    message = str(caught.value)
    assert message.startswith("data.jsonl:7: image ")
    assert repr(name) in message
    return message


@pytest.mark.parametrize("name", ["red.png", "./red.png", "../images/red.png"])
def test_image_inside_its_folder(name, root):
    pixels = load(root, name)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.full((SIZE, SIZE, 3), RED, np.uint8))


def test_absolute_path_and_link_inside_the_folder(root):
    (root / "link.png").symlink_to("red.png")
    for name in ("link.png", str(root / "red.png")):
        assert load(root, name)[0, 0].tolist() == list(RED)


@pytest.mark.parametrize(
    "name", ["../secret.png", "a/../../secret.png", "/etc/passwd", "/dev/zero", "..", "/"]
)
def test_path_outside_is_refused(name, root):
    assert "outside its folder" in refusal(root, name)


def test_link_to_outside_is_refused(root):
    (root / "link.png").symlink_to(root.parent / "secret.png")
    (root / "dir").symlink_to(root.parent)
    for name in ("link.png", "dir/secret.png"):
        assert "outside its folder" in refusal(root, name)


def test_folder_with_the_same_beginning_is_outside(root):
    (root.parent / "images2").mkdir()
    Image.new("RGB", (1, 1)).save(root.parent / "images2" / "a.png")
    assert "outside its folder" in refusal(root, "../images2/a.png")


@pytest.mark.parametrize("name", ["http://x/a.png", "file:///etc/passwd", "a\0.png"])
def test_urls_and_nul_are_no_file_names(name, root):
    assert "is no file name" in refusal(root, name)


@pytest.mark.parametrize("name", ["missing.png", "~/a.png", "red.png/a.png", "x" * 300])
def test_missing_image(name, root):
    assert "cannot be read" in refusal(root, name)


def test_link_loop(root):
    (root / "loop.png").symlink_to("loop.png")
    assert "cannot be read" in refusal(root, "loop.png")


def test_only_plain_files_are_opened(root):
    os.mkfifo(root / "pipe.png")  # opening it would wait for ever
    assert "is no plain file" in refusal(root, "pipe.png")
    assert "is no plain file" in refusal(root, ".")


def encoded(format_):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format_)
    return file.getvalue()


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
def test_truncated_file_is_refused(format_, kept, root):
    data = encoded(format_)
    (root / "cut").write_bytes(data[: int(len(data) * kept)])
    assert "cannot be decoded" in refusal(root, "cut")


@pytest.mark.parametrize(
    "data",
    [b"<html>not found</html>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.4", b"\0"],
)
def test_other_content_is_refused(data, root):
    (root / "fake.png").write_bytes(data)
    assert "cannot be decoded" in refusal(root, "fake.png")


@pytest.mark.parametrize("format_", ["TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(format_, root):
    (root / "image.png").write_bytes(encoded(format_))
    assert "cannot be decoded" in refusal(root, "image.png")


def test_format_is_what_the_file_holds_not_its_name(root):
    (root / "image.png").write_bytes(encoded("BMP"))
    assert load(root, "image.png", 40).shape == (40, 40, 3)


def png_header(width, height):
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8001, 8000), (50_000, 50_000)])
def test_huge_image_is_refused_from_its_header(size, root):
    (root / "bomb.png").write_bytes(png_header(*size))
    message = refusal(root, "bomb.png")
    assert "at most 64,000,000 are decoded" in message or "cannot be decoded" in message


def save(root, image, name="image.png", **options):
    image.save(root / name, **options)
    return load(root, name, image.size[0])


def test_transparency_is_laid_on_white(root):
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    np.testing.assert_array_equal(save(root, half), np.full((2, 2, 3), 127, np.uint8))
    assert save(root, Image.new("LA", (2, 2), (50, 0))).min() == 255
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((0, 0), 1)
    pixels = save(root, palette, transparency=0)
    assert pixels[0, 0].tolist() == [0, 0, 255]
    assert pixels[1, 1].tolist() == [255, 255, 255]


def test_16_bit_grey_is_scaled_not_clipped(root):
    values = np.array([[0, 257, 32768, 65535]] * 4, np.uint16)
    pixels = save(root, Image.fromarray(values))
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 1, 128, 255])
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [("1", 1, [255] * 3), ("L", 77, [77] * 3), ("P", 0, [0] * 3)],
)
def test_grey_and_palette_modes(mode, color, expected, root):
    assert save(root, Image.new(mode, (2, 2), color))[0, 0].tolist() == expected


def test_cmyk_jpeg(root):
    pixels = save(root, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "image.jpg")
    red, green, blue = pixels[4, 4].tolist()
    assert red > 200 and green < 60 and blue < 60


@pytest.mark.parametrize("orientation", range(1, 9))
def test_camera_rotation_is_undone(orientation, root):
    """A white corner, stored as a camera with each orientation would, ends at the top left."""
    upright = np.zeros((8, 8), np.uint8)
    upright[:4, :4] = 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: np.rot90(upright, 2).T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored)).convert("RGB")
    np.testing.assert_array_equal(save(root, image, exif=exif)[..., 0], upright)


def test_first_frame_of_an_animation(root):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(root / "a.gif", save_all=True, append_images=frames[1:])
    assert load(root, "a.gif", 4)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("width", "height"), [(8, 4), (4, 8)])
def test_pad_centres_on_the_colour(width, height, root):
    Image.new("RGB", (width, height), "white").save(root / "wide.png")
    pixels = load(root, "wide.png", 8, "pad")
    if width < height:
        pixels = pixels.transpose(1, 0, 2)
    assert (pixels[:2] == 127).all() and (pixels[6:] == 127).all()
    assert (pixels[2:6] == 255).all()


def test_square_ignores_the_aspect_ratio(root):
    Image.new("RGB", (8, 4), "white").save(root / "wide.png")
    assert (load(root, "wide.png", 8) == 255).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (2000, 1)])
@pytest.mark.parametrize("geometry", ["square", "pad"])
def test_extreme_shapes(shape, geometry, root):
    Image.new("RGB", shape, RED).save(root / "thin.png")
    assert load(root, "thin.png", 4, geometry).shape == (4, 4, 3)


def test_cache_serves_equal_pixels_that_nobody_can_change(root):
    loader = ImageLoader(str(root), SIZE)
    first = loader.load("red.png", "f:1")
    (root / "red.png").unlink()
    assert loader.load("red.png", "f:2") is first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0
    copy = pickle.loads(pickle.dumps(loader))  # what a worker process gets: settings, no pixels
    with pytest.raises(UserError, match="f:3"):
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


def test_padding_has_the_mean_colour_of_the_tower():
    assert pad_color((0.5, 0.5, 0.5)) == GREY == (127, 127, 127)
    assert pad_color((0.48145466, 0.4578275, 0.40821073)) == (122, 116, 104)
