"""D4: every mode, rotation and animation has one defined RGB picture."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from metamorph_jax.data.image_files import to_rgb
from tests.reliability.image_cases import PNG_SIGNATURE, chunk, encoded, load

PALETTE = [255, 0, 0, 0, 0, 255] + [0] * 762  # red, blue


def with_palette(mode, value, alpha=None):
    image = Image.new(mode, (2, 2), value)
    image.putpalette(PALETTE)
    if alpha is not None:
        image.info["transparency"] = alpha
    return image


def marked(image, transparency):
    image.info["transparency"] = transparency
    return image


def from_array(values, dtype):
    return Image.fromarray(np.full((2, 2), values, dtype))


# An image of one colour -> the RGB that it has.
MODES = {
    "1_white": (Image.new("1", (2, 2), 1), (255, 255, 255)),
    "1_black": (Image.new("1", (2, 2), 0), (0, 0, 0)),
    "L": (Image.new("L", (2, 2), 77), (77, 77, 77)),
    "L_transparent": (marked(Image.new("L", (2, 2), 77), 77), (255, 255, 255)),
    "L_other_value_transparent": (marked(Image.new("L", (2, 2), 77), 76), (77, 77, 77)),
    "LA_opaque": (Image.new("LA", (2, 2), (50, 255)), (50, 50, 50)),
    "LA_half": (Image.new("LA", (2, 2), (0, 128)), (127, 127, 127)),
    "LA_clear": (Image.new("LA", (2, 2), (50, 0)), (255, 255, 255)),
    "P": (with_palette("P", 1), (0, 0, 255)),
    "P_transparent_index": (with_palette("P", 0, 0), (255, 255, 255)),
    "P_other_index_transparent": (with_palette("P", 1, 0), (0, 0, 255)),
    "P_alpha_per_index": (with_palette("P", 1, bytes([255, 128])), (127, 127, 255)),
    "PA_opaque": (with_palette("P", 1).convert("PA"), (0, 0, 255)),
    "I;16_black": (from_array(0, np.uint16), (0, 0, 0)),
    "I;16_middle": (from_array(32768, np.uint16), (128, 128, 128)),
    "I;16_rounded": (from_array(257 * 9 + 128, np.uint16), (9, 9, 9)),
    "I;16_rounded_up": (from_array(257 * 9 + 129, np.uint16), (10, 10, 10)),
    "I;16_white": (from_array(65535, np.uint16), (255, 255, 255)),
    "I;16B": (Image.frombytes("I;16B", (2, 2), b"\x80\x00" * 4), (128, 128, 128)),
    "I_of_16_bits": (from_array(65535, np.int32), (255, 255, 255)),
    "I_out_of_range": (from_array(-5, np.int32), (0, 0, 0)),
    "F": (from_array(76.6, np.float32), (77, 77, 77)),
    "F_out_of_range": (from_array(1e9, np.float32), (255, 255, 255)),
    "F_no_number": (from_array(np.nan, np.float32), (0, 0, 0)),
    "CMYK_white": (Image.new("CMYK", (2, 2), (0, 0, 0, 0)), (255, 255, 255)),
    "CMYK_red": (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), (255, 0, 0)),
    "CMYK_black": (Image.new("CMYK", (2, 2), (0, 0, 0, 255)), (0, 0, 0)),
    "YCbCr_grey": (Image.new("YCbCr", (2, 2), (90, 128, 128)), (90, 90, 90)),
    "RGB_transparent": (marked(Image.new("RGB", (2, 2), (1, 2, 3)), (1, 2, 3)), (255, 255, 255)),
    "RGBA_half": (Image.new("RGBA", (2, 2), (255, 0, 0, 128)), (255, 127, 127)),
    "RGBA_clear": (Image.new("RGBA", (2, 2), (255, 0, 0, 0)), (255, 255, 255)),
    "RGBa_half": (Image.new("RGBA", (2, 2), (200, 0, 0, 255)).convert("RGBa"), (200, 0, 0)),
    "HSV_red": (Image.new("HSV", (2, 2), (0, 255, 255)), (255, 0, 0)),
}


@pytest.mark.parametrize("name", MODES)
def test_d4_modes(name):
    image, color = MODES[name]
    assert name.startswith(image.mode) or name.startswith("PA")
    converted = to_rgb(image)
    assert converted.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(converted), np.full((2, 2, 3), color, np.uint8))


def test_d4_lab_mode():
    """Through lcms, whose rounding is not ours to fix; 128 is neutral."""
    for lab, grey in (((255, 128, 128), 255), ((128, 128, 128), 119), ((0, 128, 128), 0)):
        converted = np.asarray(to_rgb(Image.new("LAB", (2, 2), lab))).astype(int)
        assert np.abs(converted - grey).max() <= 1


# What of these the five formats can hold comes out of a file the same.
STORED = [name for name, (image, _) in MODES.items() if image.mode in ("1", "L", "LA", "P", "RGBA")]


@pytest.mark.parametrize("name", STORED)
def test_d4_modes_of_png_files(name, tmp_path):
    image, color = MODES[name]
    image.save(tmp_path / "a.png", **{k: v for k, v in image.info.items() if k == "transparency"})
    np.testing.assert_array_equal(load(tmp_path, "a.png", 2), np.full((2, 2, 3), color, np.uint8))


def test_d4_16_bit_png_files(tmp_path):
    Image.fromarray(np.array([[0, 257, 32768, 65535]] * 4, np.uint16)).save(tmp_path / "grey.png")
    assert load(tmp_path, "grey.png", 4)[0, :, 0].tolist() == [0, 1, 128, 255]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    pixel = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">HHH", 0xFFFF, 0x80FF, 0x01FF)))
    (tmp_path / "color.png").write_bytes(PNG_SIGNATURE + header + pixel + chunk(b"IEND"))
    # Pillow keeps the upper byte of colours, as it does for Hugging Face's processors.
    assert load(tmp_path, "color.png", 1)[0, 0].tolist() == [255, 128, 1]


def test_d4_cmyk_and_ycbcr_jpeg_files(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    red, green, blue = load(tmp_path, "cmyk.jpg")[4, 4].tolist()
    assert red > 250 and green < 5 and blue < 5
    Image.new("YCbCr", (8, 8), (90, 128, 128)).save(tmp_path / "ycc.jpg")
    assert np.abs(load(tmp_path, "ycc.jpg").astype(int) - 90).max() <= 1


def upright_and_stored(orientation):
    """A white corner at the top left, and how a camera stores it with this orientation."""
    upright = np.zeros((8, 16), np.uint8)
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
    return upright, Image.fromarray(np.ascontiguousarray(stored)).convert("RGB")


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_d4_camera_rotation_is_undone(format_, orientation, tmp_path):
    upright, image = upright_and_stored(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.img", format_, exif=exif, quality=100)
    ours = load(tmp_path, "a.img", 16)
    expected = Image.fromarray(upright).convert("RGB").resize((16, 16), Image.Resampling.BICUBIC)
    assert np.abs(ours.astype(int) - np.asarray(expected)).max() <= 2  # JPEG and WebP are lossy


@pytest.mark.parametrize("value", [0, 9, 65535, b"\xff" * 8])
def test_d4_meaningless_rotation_is_ignored(value, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = value
    data = exif.tobytes() if not isinstance(value, bytes) else b"Exif\0\0" + value
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "a.png", exif=data)
    assert (load(tmp_path, "a.png") == 9).all()


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG"])
def test_d4_first_frame_of_animations(format_, tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    options = {"lossless": True} if format_ == "WEBP" else {}
    frames[0].save(tmp_path / "a.img", format_, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(load(tmp_path, "a.img"), np.full((8, 8, 3), (255, 0, 0)))


def test_d4_color_profiles_are_ignored(tmp_path):
    with Image.open(io.BytesIO(encoded("PNG"))) as image:
        image.save(tmp_path / "plain.png")
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
        image.save(tmp_path / "profile.png", icc_profile=profile)
        image.save(tmp_path / "damaged.png", icc_profile=b"no profile")
    plain = load(tmp_path, "plain.png")
    for name in ("profile.png", "damaged.png"):
        np.testing.assert_array_equal(load(tmp_path, name), plain)
