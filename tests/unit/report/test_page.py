"""The page: nothing a model says becomes markup, nothing is loaded, every section is linked."""

import numpy as np
import pytest
from PIL import Image

from metamorph_jax.report import page
from metamorph_jax.report.pictures import data_uri, row, stack, thumbnail
from tests.unit.report.page_reader import PageReader, decode_image

EVIL = '<script>alert("x")</script> & "quotes"'


def test_texts_are_escaped_everywhere():
    content = page.section(
        EVIL,
        page.paragraph(EVIL, class_='a" onload="x'),
        page.table((EVIL,), [(EVIL,)]),
        page.figure(page.image("data:,", EVIL), EVIL),
        EVIL,
    )
    written = page.render(EVIL, EVIL, [content])
    reader = PageReader(written)
    assert "script" not in reader.tags
    assert reader.text.count(EVIL) == 10  # every place, read back as it was
    assert "onload" not in written.replace('a&quot; onload=&quot;x"', "")


def test_sections_are_linked_and_nothing_is_loaded():
    written = page.render("Run", "lead", [page.section("One", "a"), page.section("Two", "b")])
    reader = PageReader(written)
    assert reader.is_self_contained
    assert [a for a in reader.addresses if a.startswith("#")] == ["#s1", "#s2"]
    assert 'id="s1"' in written and 'id="s2"' in written
    assert "@import" not in written and "url(" not in written


def test_verdict_is_readable_without_colour():
    assert "yes" in page.verdict(True)
    assert "no" in page.verdict(False)


def test_row_of_pictures_keeps_pixels_and_frames_what_is_wrong():
    pictures = [np.full((6, 6, 3), value, np.uint8) for value in (10, 20)]
    sheet = row([*pictures, None], wrong=[False, True, False])
    assert sheet.shape[0] == 10
    assert np.all(sheet[2:8, 2:8] == 10)
    assert np.all(sheet[2:8, 16:22] == 20)
    assert np.all(sheet[0, :10] == 255)  # right: no frame
    red = sheet[0, 14]
    assert red[0] > 200 and red[1] < 100
    assert np.array_equal(sheet[0, 28], red)  # no picture: framed, and empty inside
    assert np.all(sheet[2:8, 30:36] == 255)
    assert stack([sheet, sheet]).shape == (2 * 10 + 4, sheet.shape[1], 3)


@pytest.mark.parametrize(("side", "kind"), [(40, "PNG"), (500, "JPEG")])
def test_thumbnails_shrink_only_what_is_large(tmp_path, side, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    small = decode_image(thumbnail(tmp_path / "a.png", 192))
    assert small.format == kind
    assert max(small.size) == min(side, 192)
    if kind == "PNG":
        np.testing.assert_array_equal(np.asarray(small), pixels)


def test_data_uri_is_lossless():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(decode_image(data_uri(pixels))), pixels)
