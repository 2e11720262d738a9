"""D3: small files that would unpack to very much are refused by their headers, or cost little."""

import json
import struct
import subprocess
import sys
import zlib

import pytest

from tests.reliability import image_cases as cases
from tests.reliability.image_cases import chunk, png

MEGABYTE = 2**20
MAX_GROWTH_BYTES, MAX_SECS = 200 * MEGABYTE, 1.0
SPACES = zlib.compress(b" " * (80 * MEGABYTE), 9)
SMALL_SPACES = zlib.compress(b" " * (MEGABYTE - 100), 9)


def tiff(width, height):
    entries = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (278, height)]
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + fields + b"\0" * 4


def apng(frames):
    control = chunk(b"acTL", struct.pack(">II", frames, 0))
    pixel = zlib.compress(b"\0\0")
    parts = [control]
    for number in range(frames):
        parts.append(chunk(b"fcTL", struct.pack(">IIIIIHHBB", 2 * number, 1, 1, 0, 0, 1, 10, 0, 0)))
        parts.append(chunk(b"fdAT", struct.pack(">I", 2 * number + 1) + pixel))
    return png(1, 1, pixels=b"\0\0").replace(chunk(b"IEND"), b"".join(parts) + chunk(b"IEND"))


TOO_LARGE, UNREADABLE, FINE = "too_large_media", "unreadable_media", "loaded"
BOMBS = {
    "png_50k": (lambda: png(50_000, 50_000), TOO_LARGE),
    "png_12k": (lambda: png(12_000, 12_000), TOO_LARGE),  # Pillow itself would only warn
    "png_just_too_large": (lambda: png(8_001, 8_000), TOO_LARGE),
    "png_4g_wide": (lambda: png(2**31 - 1, 1), TOO_LARGE),
    "gif_50k": (lambda: cases.gif(50_000, 50_000), TOO_LARGE),
    "gif_frame_larger_than_its_screen": (lambda: cases.gif(1, 1, 1, (50_000, 50_000)), TOO_LARGE),
    "webp_50k": (lambda: cases.webp_of_size(50_000, 50_000), TOO_LARGE),
    "webp_9k": (lambda: cases.webp_of_size(9_000, 9_000), TOO_LARGE),
    "bmp_50k": (lambda: cases.bmp(50_000, 50_000), TOO_LARGE),
    "jpeg_65k": (lambda: cases.jpeg_of_size(65_000, 65_000), TOO_LARGE),
    "tiff_50k": (lambda: tiff(50_000, 50_000), UNREADABLE),
    "png_itxt": (lambda: png(4, 4, chunk(b"iTXt", b"k\0\1\0\0\0" + SPACES)), TOO_LARGE),
    "png_ztxt": (lambda: png(4, 4, chunk(b"zTXt", b"k\0\0" + SPACES)), TOO_LARGE),
    "png_iccp": (lambda: png(4, 4, chunk(b"iCCP", b"k\0\0" + SPACES)), TOO_LARGE),
    "png_100_ztxt": (
        lambda: png(4, 4, *[chunk(b"zTXt", b"k%d\0\0" % i + SMALL_SPACES) for i in range(100)]),
        TOO_LARGE,
    ),
    "png_text_behind_the_pixels": (
        lambda: png(1, 1, pixels=b"\0\0").replace(
            chunk(b"IEND"), chunk(b"zTXt", b"k\0\0" + SPACES) + chunk(b"IEND")
        ),
        TOO_LARGE,
    ),
    "png_pixels_behind_the_last": (lambda: png(1, 1, pixels=b"\0" * (80 * MEGABYTE)), FINE),
    "apng_10k_frames": (lambda: apng(10_000), FINE),
    "gif_10k_frames": (lambda: cases.gif(1, 1, 10_000), FINE),
    "webp_10k_frames": (lambda: cases.webp_frames(10_000), FINE),
}

# A process of its own, so that its peak is ours; processor time, so that neighbours do not count.
CHILD = """
import json, resource, sys, time
from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.images import ImageLoader
loader = ImageLoader(sys.argv[1], 8)
loader.load("warm.png", "data.jsonl:1")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
found = {}
for name in sys.argv[2:]:
    before, start = peak(), time.process_time()
    try:
        loader.load(name, "data.jsonl:7")
        said = "loaded", ""
    except BadSample as error:
        said = error.reason, str(error)
    found[name] = [*said, time.process_time() - start, peak() - before]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    root = tmp_path_factory.mktemp("bombs")
    (root / "warm.png").write_bytes(cases.encoded("PNG"))
    for name, (make, _) in BOMBS.items():
        data = make()
        assert len(data) < MEGABYTE
        (root / name).write_bytes(data)
    command = [sys.executable, "-c", CHILD, str(root), *BOMBS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", BOMBS)
def test_d3_bombs(name, outcomes):
    reason, message, secs, growth_bytes = outcomes[name]
    assert reason == BOMBS[name][1], message
    assert reason == FINE or message.startswith(f"data.jsonl:7: image {name!r} ")
    assert secs < MAX_SECS
    assert growth_bytes < MAX_GROWTH_BYTES


def test_d3_all_bombs_together(outcomes):
    assert len(outcomes) >= 15
    assert sum(growth for _, _, _, growth in outcomes.values()) < MAX_GROWTH_BYTES
