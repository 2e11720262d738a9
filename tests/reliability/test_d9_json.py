"""D9: hostile and broken JSON, as a line of a `.jsonl` file and as an element of a `.json` list.

Each case is read between two good records: it is either taken, with the value that is named here,
or it is one bad record that names its line; the good ones are read in any case.
"""

import json
import resource

import pytest

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.sources import open_source
from metamorph_jax.data.sources.json_text import MAX_DEPTH, MAX_RECORD_BYTES
from tests.source_files import GOOD, write_bytes

TURNS = '"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]'
TEXT = json.dumps(GOOD)


def record(field: str) -> bytes:
    """Returns a good record with one more field in it."""
    return f"{{{field}, {TURNS}}}".encode("utf-8", "surrogatepass")


def nested(depth: int, begin: str = "[", end: str = "]") -> bytes:
    return record(f'"x": {begin * depth}{end * depth}')


ACCEPTED = {
    "NaN": (record('"x": NaN'), lambda x: x != x),
    "infinity": (record('"x": -Infinity'), lambda x: x == -float("inf")),
    "huge float": (record('"x": 1e999'), lambda x: x == float("inf")),
    "big int": (record('"x": 123456789012345678901234567890'), lambda x: x > 10**29),
    "pair of surrogates": (record(r'"x": "\ud83d\ude00"'), lambda x: x == "\U0001f600"),
    "escaped backslash before u": (record(r'"x": "\\ud83d"'), lambda x: x == r"\ud83d"),
    "escaped NUL": (record(r'"x": "\u0000"'), lambda x: x == "\0"),
    "noncharacter": (record(r'"x": "\uffff"'), lambda x: x == "\uffff"),
    "line separator": (record('"x": "\u2028"'), lambda x: x == "\u2028"),
    "deep, within bounds": (nested(MAX_DEPTH - 1), lambda x: x is not None),
    "many brackets in a text": (record(f'"x": "{"[" * 500}"'), lambda x: len(x) == 500),
    "many flat lists": (record(f'"x": [{"[]," * 500}[]]'), lambda x: len(x) == 501),
    "empty key": (record('"": 1, "x": 2'), lambda x: x == 2),
    "equal keys in two objects": (record('"x": [{"a": 1}, {"a": 2}]'), lambda x: len(x) == 2),
    "white space around": (b" \t" + record('"x": 1') + b" \t", lambda x: x == 1),
    "carriage return": (record('"x": 1') + b"\r", lambda x: x == 1),
}

REFUSED = {
    "truncated": (TEXT.encode()[:-5], "malformed JSON"),
    "no comma": (b'{"a": 1 "b": 2}', "malformed JSON"),
    "comma too many": (b'{"a": 1,}', "malformed JSON"),
    "single quotes": (b"{'a': 1}", "malformed JSON"),
    "no quotes": (b"{a: 1}", "malformed JSON"),
    "comment": (b'{"a": 1} // x', "malformed JSON"),
    "Python's None": (b'{"a": None}', "malformed JSON"),
    "undefined": (b'{"a": undefined}', "malformed JSON"),
    "hexadecimal": (b'{"a": 0x10}', "malformed JSON"),
    "leading zero": (b'{"a": 01}', "malformed JSON"),
    "leading plus": (b'{"a": +1}', "malformed JSON"),
    "bare point": (b'{"a": .5}', "malformed JSON"),
    "two values": (b"{} {}", "malformed JSON"),
    "NUL": (b"\x00\x00", "malformed JSON"),
    "NUL in a text": (b'{"a": "\x00"}', "malformed JSON"),
    "NUL behind": (TEXT.encode() + b"\x00", "malformed JSON"),
    "tab in a text": (b'{"a": "\t"}', "malformed JSON"),
    "bad escape": (rb'{"a": "\x41"}', "malformed JSON"),
    "short escape": (rb'{"a": "\u12"}', "malformed JSON"),
    "no-break space": ('\u00a0{"a": 1}'.encode(), "malformed JSON"),
    "0xff": (b'{"a": "\xff"}', "is not UTF-8"),
    "overlong encoding": (b'{"a": "\xc0\xaf"}', "is not UTF-8"),
    "encoded surrogate": (b'{"a": "\xed\xa0\x80"}', "is not UTF-8"),
    "beyond Unicode": (b'{"a": "\xf4\x90\x80\x80"}', "is not UTF-8"),
    "cut character": (b'{"a": "\xe2\x82"}', "is not UTF-8"),
    "Latin-1": ('{"a": "caf\u00e9"}'.encode("latin-1"), "is not UTF-8"),
    "high half": (record(r'"x": "\ud83d"'), "half of a surrogate pair"),
    "low half": (record(r'"x": "\uDE00"'), "half of a surrogate pair"),
    "halves in wrong order": (record(r'"x": "\ude00\ud83d"'), "half of a surrogate pair"),
    "half in a key": (record(r'"\ud83d": 1'), "half of a surrogate pair"),
    "half deep inside": (record(r'"x": [{"a": ["\ud83d"]}]'), "half of a surrogate pair"),
    "key twice": (record('"x": 1, "x": 2'), "key 'x' stands twice"),
    "conversations twice": (f"{{{TURNS}, {TURNS}}}".encode(), "key 'conversations' stands twice"),
    "key twice deep inside": (record('"x": [{"a": 1, "a": 1}]'), "key 'a' stands twice"),
    "key twice by escape": (record(r'"x": 1, "\u0078": 2'), "key 'x' stands twice"),
    "too deep": (nested(MAX_DEPTH + 1), "nested deeper than"),
    "too deep objects": (nested(MAX_DEPTH + 1, '{"a":', "}").replace(b":}", b":1}"), "nested"),
    "deep beyond the stack": (nested(100_000), "nested deeper than"),
    "deep objects beyond the stack": (nested(100_000, '{"a":', "}"), "nested deeper than"),
    "huge int": (record(f'"x": {"9" * 5000}'), "cannot be read"),
    "number": (b"3", "the record is a number"),
    "string": (b'"hi"', "the record is a string"),
    "list": (b"[1]", "the record is a list"),
    "null": (b"null", "the record is null"),
    "empty object": (b"{}", "'conversations' is missing"),
    "conversations of null": (b'{"conversations": null}', "'conversations' is missing"),
    "turns of text": (b'{"conversations": "hi"}', "'conversations' is a string"),
    "turn without text": (b'{"conversations": [{"from": "gpt"}]}', "has no 'value'"),
    "number as image": (record('"image": 3'), "'image' holds a number"),
    "lists of lists as image": (record('"image": [["a"]]'), "'image[0]' holds a list"),
}


def open_between_good_ones(folder, ending: str, content: bytes):
    good = TEXT.encode()
    if ending == "jsonl":
        return open_source(write_bytes(folder / "a.jsonl", b"\n".join([good, content, good])))
    return open_source(
        write_bytes(folder / "a.json", b"[" + b",\n".join([good, content, good]) + b"]")
    )


@pytest.mark.parametrize("ending", ["jsonl", "json"])
@pytest.mark.parametrize("name", ACCEPTED)
def test_d9_accepted(tmp_path, name, ending):
    content, is_right = ACCEPTED[name]
    source = open_between_good_ones(tmp_path, ending, content)
    assert len(source) == 3
    assert is_right(source[1].extra["x"])
    assert source[0].extra == source[2].extra == {"id": 7}


@pytest.mark.parametrize(
    ("name", "ending"),
    # Brackets that do not match spoil a list as a whole: test_json_list.py.
    [(name, "jsonl") for name in REFUSED]
    + [(name, "json") for name in REFUSED if name != "truncated"],
)
def test_d9_refused(tmp_path, name, ending):
    content, message = REFUSED[name]
    source = open_between_good_ones(tmp_path, ending, content)
    assert len(source) == 3
    with pytest.raises(BadSample) as caught:
        source[1]
    assert str(caught.value).startswith(f"{source.path}:2: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert caught.value.reason == "malformed_record"
    assert source[0].extra == source[2].extra == {"id": 7}


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_d9_line_of_gigabytes(tmp_path, ending):
    """A sparse file stands for a huge line: it is hashed in pieces, and never held in memory."""
    path, hole = tmp_path / f"a.{ending}", 200 * 2**20
    begin, end = (b"[", b",\n") if ending == "json" else (b"", b"\n")
    with open(path, "wb") as file:
        file.write(begin + TEXT.encode() + end + b'{"x": "')
        file.seek(hole, 1)
        file.write(b'"}' + end + TEXT.encode() + (b"]" if ending == "json" else b""))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = open_source(path)
    with pytest.raises(BadSample, match=f"a.{ending}:2: the record has more than"):
        source[1]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 64 * 2**20
    assert source[0].extra == source[2].extra == {"id": 7} and source[2].line == 3


@pytest.mark.parametrize("surplus", [0, 1])
def test_d9_limit_of_a_line(tmp_path, surplus):
    filling = MAX_RECORD_BYTES + surplus - len(record('"x": ""'))
    source = open_between_good_ones(tmp_path, "jsonl", record(f'"x": "{"a" * filling}"'))
    if surplus:
        with pytest.raises(BadSample, match=r"a\.jsonl:2: the record has more than 16777216 bytes"):
            source[1]
    else:
        assert len(source[1].extra["x"]) == filling
