"""Names in little memory, files that nobody vouches for, and squares."""

import numpy as np
import pytest
from PIL import Image

from metamorph_jax.data.faults import BadSample
from metamorph_jax.errors import UserError
from metamorph_jax.visualizer.pictures import (
    Names,
    Pictures,
    find_pictures,
    middle_square,
    painted_square,
    seen_square,
    squashed,
)


def test_names_are_what_went_in():
    paths = ["a.png", "folder/b c.png", "é.png", "\udcff.png"]
    names = Names.of(paths)
    assert [names[index] for index in range(len(names))] == paths
    assert [Names(b"a\r\nb")[index] for index in (0, 1)] == ["a", "b"]
    assert len(Names(b"")) == 0


def test_pictures_are_found_or_listed(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("b.PNG", "below/a.jpeg", "c.txt"):
        Image.new("RGB", (2, 2)).save(tmp_path / name, "PNG")
    found = find_pictures(tmp_path, None)
    assert [found.names[index] for index in range(len(found))] == ["b.PNG", "below/a.jpeg"]
    listed = tmp_path / "list.txt"
    listed.write_text("below/a.jpeg\n")
    assert find_pictures(tmp_path, listed).open(0).size == (2, 2)
    listed.write_text("")
    for source in (listed, tmp_path / "none.txt"):
        with pytest.raises(UserError, match=f"{source.name}: no"):
            find_pictures(tmp_path, source)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("none.png", "cannot be read, No such file"),
        ("../outside.png", "lies outside its folder"),
        ("broken.png", "broken.png"),
    ],
)
def test_bad_files_are_told_with_their_list(tmp_path, name, told):
    root = tmp_path / "root"
    root.mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "outside.png")
    whole = (tmp_path / "outside.png").read_bytes()
    (root / "broken.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadSample) as error:
        Pictures(root, Names.of(["x", name]), "list.txt").open(1)
    assert told in str(error.value)
    assert "list.txt: picture 1" in str(error.value)


def striped(width, height):
    """Returns a picture whose left third is red, right third blue, the rest green."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 3, 0] = 255
    pixels[:, width // 3 : -width // 3, 1] = 255
    pixels[:, -width // 3 :, 2] = 255
    return Image.fromarray(pixels)


def test_same_crop_keeps_the_middle_and_squash_keeps_all():
    wide = striped(90, 30)
    middle = middle_square(wide, 10)
    assert middle.shape == (10, 10, 3)
    assert middle[:, :, 1].min() == 255  # all green
    whole = squashed(wide, 9)
    assert whole[4, 0].tolist() == [255, 0, 0]
    assert whole[4, 8].tolist() == [0, 0, 255]


def test_pad_keeps_all_and_its_shape():
    padded = painted_square(striped(90, 30), 9, "pad")
    assert (padded[[0, 8]] == 127).all()
    assert padded[4, [0, 4, 8]].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert np.array_equal(seen_square(striped(90, 30), 9, "pad"), padded)


def test_a_square_is_the_same_in_all():
    square = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8))
    assert np.array_equal(middle_square(square, 12), squashed(square, 12))
    assert np.array_equal(painted_square(square, 12, "pad"), squashed(square, 12))
