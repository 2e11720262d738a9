import random
import string

import pytest

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.media import ImageBytes
from metamorph_jax.data.sources import open_source
from metamorph_jax.data.sources.array_record import write_array_record
from metamorph_jax.errors import UserError
from tests.source_files import GOOD, TURNS, check_promises, png, write_bytes


def test_records_in_order(tmp_path):
    path = tmp_path / "a.array_record"
    fields = [GOOD | {"id": n} for n in range(40)]
    assert write_array_record(path, fields) == 40
    records = check_promises(open_source(path), survives_fork=False)
    assert [record.extra["id"] for record in records] == list(range(40))
    assert records[4].where == f"{path}:5"


def test_images_travel_in_base64(tmp_path):
    path = tmp_path / "a.array_record"
    images = [png(1), ImageBytes(png(2))]
    write_array_record(path, [{"images": images, "conversations": TURNS}])
    assert open_source(path)[0].images == (ImageBytes(png(1)), ImageBytes(png(2)))


def test_shard_names_of_other_writers(tmp_path):
    for shard in range(2):
        name = f"a.array_record-{shard:05d}-of-00002"
        write_array_record(tmp_path / name, [GOOD | {"id": shard}])
    assert [r.extra["id"] for r in open_source(tmp_path / "a.array_record-*")] == [0, 1]


def test_writing_that_fails_leaves_no_file(tmp_path):
    path = tmp_path / "a.array_record"
    with pytest.raises(TypeError, match="a field holds object"):
        write_array_record(path, [{"id": object()}])
    assert not path.exists()


def test_damaged_record_spoils_no_other(tmp_path):
    path = tmp_path / "a.array_record"
    noise = random.Random(0)  # does not get smaller when it is packed
    notes = ["".join(noise.choices(string.printable, k=4000)) for _ in range(9)]
    write_array_record(path, [GOOD | {"note": note} for note in notes])
    content = bytearray(path.read_bytes())
    content[15_000] ^= 1
    path.write_bytes(content)
    source, bad = open_source(path), []
    for index in range(len(source)):
        try:
            assert source[index].extra["note"] == notes[index]
        except BadSample as error:
            assert str(error).startswith(f"{path}:{index + 1}: the record is damaged")
            bad.append(index)
    assert len(bad) == 1


@pytest.mark.parametrize("content", [b"", b"x" * 70_000])
def test_other_file(tmp_path, content):
    with pytest.raises(UserError, match="not an ArrayRecord file, or one that was cut off"):
        open_source(write_bytes(tmp_path / "a.array_record", content))


def test_empty_file(tmp_path):
    write_array_record(tmp_path / "a.array_record", [])
    with pytest.raises(UserError, match="the file holds no records"):
        open_source(tmp_path / "a.array_record")
