import concurrent.futures
import logging
import os

import pyarrow as pa
import pytest

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.media import ImageBytes
from metamorph_jax.data.sources import open_source, parquet
from metamorph_jax.errors import UserError
from tests.source_files import TURNS, check_promises, png, write_bytes, write_parquet

COUNT = 7
PICTURES = [png(n) for n in range(COUNT)]
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What <image>?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
]


def table(images, **columns):
    return {"images": images, "messages": [MESSAGES] * COUNT} | columns


def test_hugging_face_layout(tmp_path):
    images = pa.array([[{"bytes": data, "path": "a.png"}] for data in PICTURES], pa.list_(IMAGE))
    path = write_parquet(tmp_path / "a.parquet", table(images, note=list(range(COUNT))))
    records = check_promises(open_source(path))
    assert [record.images for record in records] == [(ImageBytes(data),) for data in PICTURES]
    assert records[4].turns[0].pieces == (None, "What <image>?")
    assert records[4].turns[1].speaker == "assistant"
    assert records[4].extra == {"note": 4}
    assert records[4].where == f"{path}:5"
    assert records[4].images[0].name == "a.png"


@pytest.mark.parametrize(
    ("column", "kind", "value", "expected"),
    [
        ("image", IMAGE, {"bytes": None, "path": "x.png"}, ("x.png",)),
        ("image", IMAGE, {"bytes": png(), "path": None}, (ImageBytes(png()),)),
        ("image", pa.binary(), png(), (ImageBytes(png()),)),
        ("image", pa.large_binary(), png(), (ImageBytes(png()),)),
        ("image", pa.string(), "x.png", ("x.png",)),
        ("images", pa.list_(pa.string()), ["x.png", "y.png"], ("x.png", "y.png")),
        ("images", pa.list_(pa.binary()), [png()], (ImageBytes(png()),)),
        ("images", pa.large_list(IMAGE), [{"bytes": png(), "path": "p"}], (ImageBytes(png()),)),
        ("images", pa.list_(pa.binary()), [], ()),
        ("images", pa.list_(pa.binary()), None, ()),
        ("image", IMAGE, None, ()),
        ("image", pa.null(), None, ()),
    ],
)
def test_columns_of_images(tmp_path, column, kind, value, expected):
    columns = {column: pa.array([value], kind), "conversations": [TURNS]}
    (record,) = open_source(write_parquet(tmp_path / "a.parquet", columns))
    assert record.images == expected
    assert [turn.text for turn in record.turns] == [turn["value"] for turn in TURNS]


def test_captions(tmp_path):
    columns = {"image": PICTURES, "caption": [f"shade {n}" for n in range(COUNT)]}
    source = open_source(write_parquet(tmp_path / "a.parquet", columns))
    assert source[3].caption == "shade 3" and source[3].turns == ()


@pytest.fixture
def reads(monkeypatch):
    """(file, row group) of all that is read from a disk; nothing was kept before."""
    import pyarrow.parquet as pq

    read = []

    class Counted(pq.ParquetFile):
        def __init__(self, path, **options):
            super().__init__(path, **options)
            self.path = path

        def read_row_group(self, number, **options):
            read.append((self.path, number))
            return super().read_row_group(number, **options)

    monkeypatch.setattr(pq, "ParquetFile", Counted)
    parquet._kept.cache_clear()
    return read


def test_row_groups_are_read_when_needed_and_forgotten(tmp_path, monkeypatch, reads):
    columns = {"image": PICTURES, "caption": [f"shade {n}" for n in range(COUNT)]}
    paths = [write_parquet(tmp_path / f"{n}.parquet", columns, row_group_size=2) for n in "ab"]
    first, second = map(open_source, paths)
    for source in (first, second, first, second):
        assert [source[n].caption for n in (0, 1, 6)] == ["shade 0", "shade 1", "shade 6"]
    assert reads == [(path, group) for path in paths for group in (0, 3)]

    monkeypatch.setattr(parquet, "_CACHE_BYTES", 0)  # of all files together
    reads.clear()
    for source in (first, first, second, second, first):
        assert source[2].caption == "shade 2"
    assert reads == [(paths[0], 1), (paths[1], 1), (paths[0], 1)]
    assert len(parquet._kept(os.getpid())._groups) == 1


def test_threads_share_row_groups(tmp_path, reads):
    path = write_parquet(tmp_path / "a.parquet", {"caption": list("abcdefgh")}, row_group_size=1)
    source = open_source(path)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        captions = list(pool.map(lambda n: source[n % 8].caption, range(200)))
    assert "".join(captions) == "abcdefgh" * 25
    assert sorted(reads) == [(path, group) for group in range(8)]


def test_large_row_groups_are_warned_of(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(parquet, "_LARGE_GROUP_BYTES", 10)
    columns = {"image": PICTURES, "caption": ["x"] * COUNT}
    path = write_parquet(tmp_path / "a.parquet", columns)
    with caplog.at_level(logging.WARNING):
        open_source(path)
        open_source(path)  # said once, when the file is indexed
    assert caplog.text.count("random access reads whole row groups") == 1


def test_damaged_row_group_spoils_its_rows_only(tmp_path):
    import pyarrow.parquet as pq

    columns = {"image": PICTURES, "caption": [f"shade {n}" for n in range(COUNT)]}
    path = tmp_path / "a.parquet"
    options = {"row_group_size": 2, "compression": "none", "use_dictionary": False}
    pq.write_table(
        pa.table(columns), path, write_page_checksum=True, write_statistics=False, **options
    )
    content = bytearray(path.read_bytes())
    content[content.index(PICTURES[2]) + 30] ^= 1
    path.write_bytes(content)
    source = open_source(path)
    for index in range(COUNT):
        if index in (2, 3):
            with pytest.raises(BadSample, match=rf"a\.parquet:{index + 1}: row group 1 cannot be"):
                source[index]
        else:
            assert source[index].caption == f"shade {index}"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1]}, "no column that makes a record (found a)"),
        ({"image": [1], "caption": ["x"]}, "column 'image' is int64"),
        ({"image": ["a"], "conversations": ["hi"]}, "column 'conversations' is string"),
        ({"messages": [["hi"]]}, "column 'messages' is list<"),
        ({"image": pa.array([], pa.string())}, "holds no records"),
    ],
)
def test_wrong_schema(tmp_path, columns, message):
    path = write_parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError) as caught:
        open_source(path)
    assert str(caught.value).startswith(path) and message in str(caught.value)


def test_other_file(tmp_path):
    with pytest.raises(UserError, match="not a parquet file, or one that was cut off"):
        open_source(write_bytes(tmp_path / "a.parquet", "x" * 1000))


def test_file_that_changes_under_way(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"caption": ["a", "b", "c"]})
    source = open_source(path)
    assert source[0].caption == "a"
    write_parquet(tmp_path / "a.parquet", {"caption": ["a", "b", "longer"]})
    with pytest.raises(UserError, match="the file was changed"):
        source[1]
