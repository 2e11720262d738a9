import pickle
import subprocess
import sys

import pytest

from metamorph_jax.data.sources import find_files, open_source
from metamorph_jax.errors import UserError
from tests.source_files import GOOD, check_promises, write_bytes, write_lines


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.csv", "told by its ending; expected .jsonl"),
        ("a", "told by its ending"),
        ("a.tar.gz", "unpack the file first"),
        ("a.tgz", "unpack the file first"),
        ("a.jsonl.zst", "unpack the file first"),
        ("a-{0..9}.tar", "no such data file"),
        ("{a,b}", "braces are not expanded"),
        ("nowhere.jsonl", "no such data file"),
        ("nowhere.parquet", "no such data file"),
        ("nowhere-*.tar", "no file fits this pattern"),
    ],
)
def test_source_that_cannot_be_opened(tmp_path, name, message):
    path = str(tmp_path / name)
    with pytest.raises(UserError) as caught:
        open_source(path)
    assert str(caught.value).startswith(path) and message in str(caught.value)


def test_folder_is_no_file(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(UserError, match="not a plain file"):
        open_source(tmp_path / "a.jsonl")


def test_files_of_a_name_or_a_pattern(tmp_path):
    odd = write_lines(tmp_path / "a[1].jsonl", [GOOD])
    (tmp_path / "b" / "c").mkdir(parents=True)
    deep = write_lines(tmp_path / "b" / "c" / "d.jsonl", [GOOD])
    open_source(odd)  # writes its index
    assert find_files(odd) == [odd]
    assert find_files(str(tmp_path / "a*")) == [odd]
    assert find_files(str(tmp_path / "b" / "**" / "*.jsonl")) == [deep]
    assert find_files(str(tmp_path / "e*")) == find_files(str(tmp_path / "e.json")) == []


def test_shapes_are_a_source():
    source = open_source("shapes:image_qa/train?count=3")
    assert len(source) == 3
    assert pickle.loads(pickle.dumps(source))[2] == source[2]


def test_nothing_heavy_is_imported_for_text_files(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [GOOD])
    code = (
        f"import sys; from metamorph_jax.data.sources import open_source; open_source({path!r})[0];"
        "sys.exit(' '.join({'jax', 'torch', 'pyarrow', 'tensorflow_datasets', 'tensorflow'}"
        " & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pattern_is_one_source_in_the_order_of_names(tmp_path):
    for name, count in (("b-1", 2), ("b-0", 3), ("c", 5)):
        write_lines(
            tmp_path / f"{name}.jsonl", [GOOD | {"id": f"{name}/{n}"} for n in range(count)]
        )
    source = open_source(tmp_path / "b-*.jsonl")
    names = [record.extra["id"] for record in check_promises(source)]
    assert names == ["b-0/0", "b-0/1", "b-0/2", "b-1/0", "b-1/1"]
    assert source.where(3) == f"{tmp_path}/b-1.jsonl:1"
    everything = open_source(tmp_path / "*")  # indexes beside the files are no shards
    assert len(everything) == 10
    assert everything.fingerprint != source.fingerprint


def test_fingerprint_of_shards_follows_content_and_order(tmp_path):
    for name, number in (("a", 1), ("b", 2)):
        write_lines(tmp_path / f"{name}.jsonl", [GOOD | {"id": number}])
    before = open_source(tmp_path / "*.jsonl").fingerprint
    assert open_source(tmp_path / "?.jsonl").fingerprint == before
    (tmp_path / "a.jsonl").rename(tmp_path / "c.jsonl")
    assert open_source(tmp_path / "?.jsonl").fingerprint != before


def test_name_with_wildcards_that_is_a_file(tmp_path):
    path = write_lines(tmp_path / "a[1].jsonl", [GOOD])
    assert open_source(path)[0].file == path


def test_damaged_shard_stops_the_whole_source(tmp_path):
    write_lines(tmp_path / "a.jsonl", [GOOD])
    write_bytes(tmp_path / "b.jsonl", "")
    with pytest.raises(UserError, match=r"b\.jsonl: the file holds no records"):
        open_source(tmp_path / "*.jsonl")
