"""D2: files that hold no image are refused with the right reason; names do not matter."""

import gzip
import hashlib

import pytest

from metamorph_jax.data.image_files import content_hash
from tests.reliability.image_cases import encoded, load, refusal

CONTENTS = {
    "empty": b"",
    "one_nul": b"\0",
    "one_byte": b"\xff",
    "newline": b"\n",
    "text": b"The quick brown fox jumps over the lazy dog.\n" * 20,
    "html": b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>",
    "json_error": b'{"error": {"code": 403, "message": "Rate limit exceeded"}}',
    "git_lfs_pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "gzip_of_png": gzip.compress(encoded("PNG")),
    "zip": b"PK\x03\x04" + b"\0" * 100,
    "numpy": b"\x93NUMPY\x01\x00" + b"\0" * 100,
    "mp4": b"\0\0\0\x20ftypisom" + b"\0" * 100,
    "only_jpeg_signature": b"\xff\xd8\xff\xe0",
    "only_png_signature": b"\x89PNG\r\n\x1a\n",
    "only_gif_signature": b"GIF89a",
    "only_webp_signature": b"RIFF\x10\0\0\0WEBPVP8 ",
    "only_bmp_signature": b"BM",
}


@pytest.mark.parametrize("extension", ["jpg", "png"])
@pytest.mark.parametrize("name", CONTENTS)
def test_d2_not_an_image(name, extension, tmp_path):
    (tmp_path / f"a.{extension}").write_bytes(CONTENTS[name])
    error = refusal(tmp_path, f"a.{extension}")
    assert error.reason == "unreadable_media"
    assert "cannot be decoded" in str(error)
    assert error.sha256 == content_hash(CONTENTS[name])
    assert error.sha256 == hashlib.sha256(CONTENTS[name]).hexdigest()


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("extension", ["jpg", "png", "txt", "tiff"])
def test_d2_wrong_extension(format_, extension, tmp_path):
    """The content says what it is; the name of the file is not asked."""
    (tmp_path / f"a.{extension}").write_bytes(encoded(format_))
    assert load(tmp_path, f"a.{extension}").shape == (8, 8, 3)
