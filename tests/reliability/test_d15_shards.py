"""D15: parquet and ArrayRecord files that are cut off, damaged, or hold something else.

A file that cannot be opened stops the run and is named, also among shards: leaving it out would
move every record behind it. A row or a record that is damaged is one bad sample.
"""

import pyarrow as pa
import pytest

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.sources import open_source
from metamorph_jax.data.sources.array_record import write_array_record
from metamorph_jax.errors import UserError
from tests.source_files import GOOD, TURNS, png, write_bytes, write_parquet

COUNT = 30


def write_good(path):
    if path.suffix == ".parquet":
        columns = {
            "image": [png(n) for n in range(COUNT)],
            "caption": [str(n) for n in range(COUNT)],
        }
        write_parquet(path, columns, row_group_size=10)
    else:
        write_array_record(path, [GOOD | {"id": n} for n in range(COUNT)])
    return path


@pytest.mark.parametrize("ending", ["parquet", "array_record"])
@pytest.mark.parametrize(
    "kept", ["nothing", "a tenth", "half", "all but the footer", "all but one"]
)
def test_d15_cut_off(tmp_path, ending, kept):
    path = write_good(tmp_path / f"a.{ending}")
    content = path.read_bytes()
    size = len(content)
    footer = 200 if ending == "parquet" else 2**16
    end = {
        "nothing": 0,
        "a tenth": size // 10,
        "half": size // 2,
        "all but the footer": size - footer,
        "all but one": size - 1,
    }[kept]
    write_bytes(path, content[:end])
    write_good(tmp_path / f"b.{ending}")
    for name in (path, tmp_path / f"*.{ending}"):
        with pytest.raises(UserError, match="cut off") as caught:
            open_source(name)
        assert str(caught.value).startswith(f"{path}: ")
        assert not isinstance(caught.value, BadSample)


@pytest.mark.parametrize("ending", ["parquet", "array_record"])
def test_d15_every_byte_of_the_file_may_be_wrong(tmp_path, ending):
    """Whatever byte is flipped: good records, bad samples, or a file that is refused by name."""
    path = write_good(tmp_path / f"a.{ending}")
    content = path.read_bytes()
    used = len(content.rstrip(b"\0"))
    outcomes = set()
    for place in range(0, used, max(1, used // 60)):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        write_bytes(path, bytes(damaged))
        try:
            source = open_source(path)
        except UserError as error:
            assert str(error).startswith(f"{path}:")
            outcomes.add("refused")
            continue
        for index in range(len(source)):
            try:
                record = source[index]
                assert record.caption or record.turns
                outcomes.add("good")
            except BadSample as error:
                assert str(error).startswith(f"{path}:{index + 1}: ")
                outcomes.add("bad")
    assert "good" in outcomes and "bad" in outcomes


BINARY = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.mark.parametrize(
    ("column", "kind", "values", "message"),
    [
        ("image", BINARY, [{"bytes": None, "path": None}], "'image' holds null"),
        ("image", BINARY, [{"bytes": b"", "path": None}], "'image' holds an image of no bytes"),
        ("image", pa.binary(), [b""], "'image' holds an image of no bytes"),
        ("images", pa.list_(pa.binary()), [[None]], r"'images\[0\]' holds null"),
        ("images", pa.list_(BINARY), [[None]], r"'images\[0\]' holds null"),
        ("images", pa.list_(pa.string()), [["a.png", ""]], r"'images\[1\]' holds an empty string"),
    ],
)
def test_d15_null_bytes(tmp_path, column, kind, values, message):
    good = [png()] if pa.types.is_list(kind) else png()
    good = {"bytes": png(), "path": None} if kind == BINARY else good
    good = [{"bytes": png(), "path": None}] if kind == pa.list_(BINARY) else good
    good = ["a.png"] if kind == pa.list_(pa.string()) else good
    rows = pa.array([good, *values, good], kind)
    columns = {column: rows, "conversations": [TURNS] * 3}
    source = open_source(write_parquet(tmp_path / "a.parquet", columns))
    assert len(source[0].images) == len(source[2].images) == 1
    with pytest.raises(BadSample, match=message) as caught:
        source[1]
    assert str(caught.value).startswith(source.where(1))


@pytest.mark.parametrize(
    "columns",
    [
        {"text": ["x"]},
        {"image": [1.5], "caption": ["x"]},
        {"images": [[1]], "caption": ["x"]},
        {"conversations": ['[{"from": "human"}]']},
        {"messages": [{"role": "user", "content": "x"}]},
    ],
    ids=["no known column", "numbers", "lists of numbers", "JSON as text", "no list"],
)
def test_d15_wrong_schema(tmp_path, columns):
    path = write_parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError, match="expected `messages` or `conversations`") as caught:
        open_source(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"{}"])
def test_d15_record_of_something_else(tmp_path, content):
    from array_record.python.array_record_module import ArrayRecordWriter

    path = tmp_path / "a.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    writer.write(content)
    writer.close()
    source = open_source(path)
    with pytest.raises(BadSample) as caught:
        source[0]
    assert str(caught.value).startswith(f"{path}:1: ")
