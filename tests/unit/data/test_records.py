import json

import pytest

from metamorph_jax.data.records import RecordFile, parse_record
from metamorph_jax.errors import UserError

TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
GOOD = json.dumps({"id": 7, "image": "a.png", "conversations": TURNS})


def write(folder, text, name="data.jsonl"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_jsonl_keeps_lines_and_skips_blank_ones(tmp_path):
    path = write(tmp_path, f"\ufeff{GOOD}\n\n  \r\n{GOOD}\r\n")
    records = RecordFile(path)
    assert len(records) == 2
    assert [record.line for record in records] == [1, 4]
    assert records[1].where == f"{path}:4"
    assert records[1].images == ("a.png",)
    assert records[1].turns[1].text == "Hello."
    assert records[1].extra == {"id": 7}


def test_json_list_finds_the_line_of_each_record(tmp_path):
    text = json.dumps([json.loads(GOOD), json.loads(GOOD)], indent=1)
    records = RecordFile(write(tmp_path, text, "data.json"))
    expected = [n for n, line in enumerate(text.split("\n"), 1) if line == " {"]
    assert [record.line for record in records] == expected
    assert records[1].line == expected[1]


@pytest.mark.parametrize("image", ["absent", None, [], "a.png", ["a.png", "b.png"]])
def test_image_may_be_absent_a_path_or_a_list(image):
    fields = {"conversations": TURNS} | ({} if image == "absent" else {"image": image})
    expected = {"absent": (), "a.png": ("a.png",)}.get(image) if isinstance(image, str) else None
    assert parse_record(fields, "f", 1).images == (
        expected if expected is not None else tuple(image or ())
    )


MALFORMED = {
    "truncated": (GOOD[:-5], "malformed JSON"),
    "empty object": ("{}", "'conversations' is missing"),
    "not an object": ("[1]", "is a list"),
    "number": ("3", "is a number"),
    "no turns": ('{"conversations": []}', "is an empty list"),
    "turns of the wrong type": ('{"conversations": "hi"}', "is a string"),
    "turn of the wrong type": ('{"conversations": ["hi"]}', "conversations[0] is a string"),
    "turn without value": ('{"conversations": [{"from": "gpt"}]}', "has no 'value'"),
    "value of the wrong type": (
        '{"conversations": [{"from": "gpt", "value": null}]}',
        "conversations[0]['value'] is null",
    ),
    "image of the wrong type": ('{"image": 3, "conversations": [{}]}', "'image' holds a number"),
    "image list": ('{"image": ["a", {}], "conversations": [{}]}', "'image' holds an empty dict"),
    "empty path": ('{"image": "", "conversations": [{}]}', "'image' holds an empty string"),
    "half a surrogate": (
        '{"conversations": [{"from": "gpt", "value": "\\ud83d"}]}',
        "half of a surrogate pair",
    ),
    "deep nesting": ("[" * 200_000, "cannot be read"),
    "huge number": ('{"a": ' + "9" * 5000 + "}", "cannot be read"),
    "not UTF-8": (b'{"conversations": "\xff"}', "is not UTF-8"),
    "NUL": (b"\x00\x00", "malformed JSON"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_bad_line_is_named(name, tmp_path):
    line, message = MALFORMED[name]
    line = line if isinstance(line, bytes) else line.encode()
    path = write(tmp_path, GOOD.encode() + b"\n" + line + b"\n")
    with pytest.raises(UserError) as caught:
        list(RecordFile(path))
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("data.json", "[\n{},\n{]", ":3: malformed JSON"),
        ("data.json", "{}", ":1: a .json file holds one list"),
        ("data.json", "", ":1: malformed JSON"),
        ("data.json", b"[\n\xff]", ":2: byte 0xff is not UTF-8"),
        ("data.json", "[]", "holds no records"),
        ("data.jsonl", "\n\n", "holds no records"),
        ("data.csv", "a,b", "ends in .json"),
    ],
)
def test_bad_file_is_named(name, text, message, tmp_path):
    path = write(tmp_path, text, name)
    with pytest.raises(UserError) as caught:
        RecordFile(path)
    assert str(caught.value).startswith(path)
    assert message in str(caught.value)


def test_overlong_line_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("metamorph_jax.data.records.MAX_RECORD_BYTES", 10)
    with pytest.raises(UserError, match=r"data.jsonl:1: the line has \d+ bytes"):
        RecordFile(write(tmp_path, GOOD))


def test_missing_file():
    with pytest.raises(UserError, match=r"nowhere\.jsonl: no such data file"):
        RecordFile("nowhere.jsonl")
