import json

import pytest

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.media import ImageBytes
from metamorph_jax.data.sources import open_source, webdataset
from metamorph_jax.errors import UserError
from tests.source_files import GOOD, TURNS, check_promises, png, write_bytes, write_tar


def test_images_with_captions(tmp_path):
    members = []
    for n in range(6):
        members += [(f"{n:03d}.jpg", png(n)), (f"{n:03d}.txt", f"shade {n}\n".encode())]
    path = write_tar(tmp_path / "a.tar", members)
    records = check_promises(open_source(path))
    assert [record.caption for record in records] == [f"shade {n}" for n in range(6)]
    assert records[5].images == (ImageBytes(png(5)),)
    assert records[5].where == f"{path}:6" and records[5].extra == {"id": "005"}


def test_fields_with_images_in_the_order_of_names(tmp_path):
    fields = json.dumps({"id": 7, "image": ["was/here.png"], "conversations": TURNS}).encode()
    members = [("./x/a.1.PNG", png(1)), ("./x/a.json", fields), ("./x/a.0.webp", png(0))]
    (record,) = open_source(write_tar(tmp_path / "a.tar", members))
    assert record.images == (ImageBytes(png(0)), ImageBytes(png(1)))
    assert record.turns[1].text == "Hello." and record.extra == {"id": 7}


def test_fields_without_an_image_member_keep_their_path(tmp_path):
    source = open_source(write_tar(tmp_path / "a.tar", [("a.json", json.dumps(GOOD).encode())]))
    assert source[0].images == ("a.png",)


def test_members_of_a_record_need_not_stand_together(tmp_path):
    members = [("a.png", png(1)), ("b.png", png(2)), ("b.txt", b"two"), ("a.txt", b"one")]
    source = open_source(write_tar(tmp_path / "a.tar", members))
    assert [(record.caption, record.images[0].data) for record in source] == [
        ("one", png(1)),
        ("two", png(2)),
    ]


def test_same_name_in_two_folders_is_two_records(tmp_path):
    members = [("x/a.txt", b"one"), ("y/a.txt", b"two")]
    assert len(open_source(write_tar(tmp_path / "a.tar", members))) == 2


def test_dots_in_folders_and_hidden_files(tmp_path):
    members = [("v1.0/a.txt", b"one"), ("v1.0/a.b.png", png()), ("v1.0/._a.png", b"resource fork")]
    (record,) = open_source(write_tar(tmp_path / "a.tar", members))
    assert record.extra == {"id": "v1.0/a"} and len(record.images) == 1


def test_too_large_members_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MAX_IMAGE_BYTES", 100)
    monkeypatch.setattr(webdataset, "MAX_RECORD_BYTES", 10)
    members = [("a.png", b"x" * 101), ("b.txt", b"x" * 11), ("c.txt", b"fine")]
    source = open_source(write_tar(tmp_path / "a.tar", members))
    for index, reason in ((0, "too_large_media"), (1, "malformed_record")):
        with pytest.raises(BadSample, match="at most") as caught:
            source[index]
        assert caught.value.reason == reason
    assert source[2].caption == "fine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no tar file"),
        (b"hello " * 1000, "no tar file"),
        (b"\x1f\x8b" + bytes(1000), "a compressed file; unpack it with gunzip"),
        (bytes(10240), "holds no records"),
    ],
)
def test_other_file(tmp_path, content, message):
    path = write_bytes(tmp_path / "a.tar", content)
    with pytest.raises(UserError) as caught:
        open_source(path)
    assert str(caught.value).startswith(path) and message in str(caught.value)


def test_nothing_of_use_in_it(tmp_path):
    with pytest.raises(UserError, match="holds no records; expected members such as"):
        open_source(write_tar(tmp_path / "a.tar", [("a.pkl", b"x"), ("b.mp3", b"x")]))
