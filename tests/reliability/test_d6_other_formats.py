"""D6: five formats are opened; all others are refused, whatever the file is called."""

import pytest

from tests.reliability.image_cases import encoded, load, refusal

BY_PILLOW = "TIFF PPM ICO TGA JPEG2000 AVIF DDS PCX PDF EPS SGI MSP".split()
BY_HAND = {
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "PSD": b"8BPS\0\1" + b"\0" * 6 + b"\0\3\0\0\0\4\0\0\0\4\0\x08\0\3" + b"\0" * 64,
    "FITS": (b"SIMPLE  =                    T" + b" " * 2850),
    "EPS_with_a_program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
    "WMF": b"\xd7\xcd\xc6\x9a" + b"\0" * 60,
    "HDF5": b"\x89HDF\r\n\x1a\n" + b"\0" * 60,
}


def content(name):
    if name in BY_HAND:
        return BY_HAND[name]
    if name == "MSP":
        from io import BytesIO

        from PIL import Image

        file = BytesIO()
        Image.new("1", (8, 8)).save(file, name)
        return file.getvalue()
    return encoded(name)


@pytest.mark.parametrize("name", [*BY_PILLOW, *BY_HAND])
def test_d6_other_formats(name, tmp_path):
    (tmp_path / "a.png").write_bytes(content(name))
    error = refusal(tmp_path, "a.png")
    assert error.reason == "unreadable_media"
    assert "JPEG, PNG, WEBP, GIF or BMP" in str(error)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_d6_our_formats(format_, tmp_path):
    (tmp_path / "a").write_bytes(encoded(format_))
    assert load(tmp_path, "a").shape == (8, 8, 3)
