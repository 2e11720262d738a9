import json

import pytest

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.sources import files, open_source
from metamorph_jax.errors import UserError
from tests.source_files import GOOD, check_promises, write_bytes

HARD = [GOOD | {"id": text} for text in ['"', "\\", '\\"', "][", "}, {", "\\\\", "a\nb", '\\\\\\"']]


@pytest.mark.parametrize("indent", [None, 1])
def test_elements_in_order(tmp_path, indent):
    text = json.dumps(HARD, indent=indent)
    records = check_promises(open_source(write_bytes(tmp_path / "a.json", text)))
    assert [record.extra["id"] for record in records] == [fields["id"] for fields in HARD]
    begins = [n for n, line in enumerate(text.split("\n"), 1) if line == " {"]
    assert [record.line for record in records] == (begins or [1] * len(HARD))


@pytest.mark.parametrize("chunk_bytes", [3, 4, 5, 64, 2**20])
def test_elements_are_found_wherever_the_file_is_cut_into_pieces(
    tmp_path, monkeypatch, chunk_bytes
):
    monkeypatch.setattr(files, "_CHUNK_BYTES", chunk_bytes)
    text = "\ufeff \n" + json.dumps(HARD, indent=2) + "\r\n "
    source = open_source(write_bytes(tmp_path / "a.json", text))
    assert [record.extra["id"] for record in source] == [fields["id"] for fields in HARD]


@pytest.mark.parametrize(
    ("element", "message"),
    [
        ("", "malformed JSON"),
        ("{'a': 1}", "malformed JSON"),
        ("[1, {]", "malformed JSON"),
        ("nothing", "malformed JSON"),
        ("3", "the record is a number"),
        ("{}", "'conversations' is missing"),
    ],
)
def test_malformed_element_is_one_bad_record(tmp_path, element, message):
    good = json.dumps(GOOD)
    element = element.replace("[1, {]", '[1, "a" "b"]')
    source = open_source(write_bytes(tmp_path / "a.json", f"[{good},\n{element},\n{good}]"))
    assert len(source) == 3 and source[2].line == 3
    with pytest.raises(BadSample, match=message) as caught:
        source[1]
    if element:  # nothing at all has no line of its own
        assert str(caught.value).startswith(source.where(1))
    assert caught.value.reason == "malformed_record"


def test_comma_behind_the_last_element(tmp_path):
    source = open_source(write_bytes(tmp_path / "a.json", f"[{json.dumps(GOOD)},\n]"))
    assert len(source) == 2 and source[0].line == 1
    with pytest.raises(BadSample, match=r"a\.json:2: malformed JSON"):
        source[1]


def test_element_over_the_limit_is_not_read(tmp_path, monkeypatch):
    for module in ("json_text", "text_records", "json_list"):
        monkeypatch.setattr(f"metamorph_jax.data.sources.{module}.MAX_RECORD_BYTES", 200)
    text = json.dumps([GOOD, GOOD | {"id": "x" * 300}, GOOD])
    source = open_source(write_bytes(tmp_path / "a.json", text))
    assert source[0] == source[2]
    with pytest.raises(BadSample, match="the record has more than 200 bytes"):
        source[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: the file is empty"),
        ("\n{}", ":2: a .json file holds one list"),
        ('"[', ":1: a .json file holds one list"),
        ("[]", "holds no records"),
        ("[ \n ]", "holds no records"),
        ("[\n{},\n{]", ":3: the list has no end"),
        ("[\n{},\n", ":3: the list has no end"),
        ('[\n{"a": 1"},\n{},\n{}]', ":2: the list has no end"),
        ('[\n{"a: 1},\n{},\n{}]', ":2: the list has no end"),
        ("[\n{}\n}", ":3: a bracket that does not fit"),
        ("[{}]\n]", ":2: text after the end"),
        ("[{}]\n{}", ":2: text after the end"),
        ("[{},\n{a},\n{]", ":2: malformed JSON"),
    ],
)
def test_list_that_is_none(tmp_path, text, message):
    path = write_bytes(tmp_path / "a.json", text)
    with pytest.raises(UserError) as caught:
        open_source(path)
    assert str(caught.value).startswith(path) and message in str(caught.value)
    assert not isinstance(caught.value, BadSample)
