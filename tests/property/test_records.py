"""Whatever a file holds, reading it gives a conversation or a message that names the line.

And wherever a file is cut into pieces, the same lines and elements are found in it.
"""

import json
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from metamorph_jax.data.conversation import Conversation, read_conversation
from metamorph_jax.data.records import parse_record
from metamorph_jax.data.sources import files, open_source
from metamorph_jax.data.sources.json_list import JsonListSource
from metamorph_jax.data.sources.jsonl import JsonlSource
from metamorph_jax.errors import UserError

many = settings(deadline=None, max_examples=500)

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("<image>")
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner)),
    max_leaves=6,
)
turn = st.one_of(
    anything,
    st.fixed_dictionaries(
        {
            "from": st.one_of(st.sampled_from(["human", "gpt", "system", "user", "bot"]), anything),
            "value": st.one_of(st.sampled_from(["Hi", "<image>", "<image> <image>", ""]), anything),
        }
    ),
)
almost_records = st.fixed_dictionaries(
    {},
    optional={
        "image": st.one_of(anything, st.lists(st.sampled_from(["a.png", "b.png"]), max_size=3)),
        "conversations": st.one_of(anything, st.lists(turn, max_size=4)),
        "id": anything,
    },
)


def conversation_or_complaint(read):
    try:
        conversation = read()
    except UserError as error:
        assert "data.jsonl" in str(error)
    else:
        assert isinstance(conversation, Conversation)
        assert conversation.turns
        assert all(part for turn in conversation.turns for part in turn.parts)


@many
@given(fields=st.one_of(almost_records, anything))
def test_any_json_value(fields):
    conversation_or_complaint(lambda: read_conversation(parse_record(fields, "data.jsonl", 1)))


@many
@given(
    data=st.one_of(
        st.binary(max_size=60),
        almost_records.map(lambda fields: json.dumps(fields).encode()[:-2]),
        almost_records.map(lambda fields: json.dumps(fields).encode()),
    )
)
def test_any_bytes(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "data.jsonl"
    path.write_bytes(data)
    conversation_or_complaint(lambda: read_conversation(open_source(path)[0]))


def spans(found):
    return list(zip(found.arrays["offsets"].tolist(), found.arrays["sizes"].tolist(), strict=True))


@many
@given(
    lines=st.lists(st.sampled_from([b"", b" \t", b"{}", b" {} \r", b"\x00", b'"\xff"'])),
    end=st.sampled_from([b"", b"\n"]),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    chunk_bytes=st.integers(3, 20),
)
def test_lines_are_those_of_the_file(tmp_path_factory, lines, end, mark, chunk_bytes):
    path = tmp_path_factory.getbasetemp() / "lines"
    content = b"\n".join(lines) + end
    path.write_bytes(mark + content)
    with mock.patch.object(files, "_CHUNK_BYTES", chunk_bytes):
        found = JsonlSource.find(str(path))
    expected = [(n, line) for n, line in enumerate(content.split(b"\n"), 1) if line.strip(b" \t\r")]
    assert found.arrays["lines"].tolist() == [n for n, _ in expected]
    whole = path.read_bytes()
    assert [whole[at : at + size] for at, size in spans(found)] == [line for _, line in expected]


hard_text = st.text(st.sampled_from('a"\\[]{},\n é'), max_size=8)
hard_values = st.recursive(
    st.one_of(st.none(), st.integers(), hard_text),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(hard_text, inner)),
    max_leaves=5,
)


@many
@given(
    values=st.lists(hard_values, max_size=5),
    indent=st.sampled_from([None, 0, 2]),
    is_ascii=st.booleans(),
    chunk_bytes=st.integers(3, 20),
)
def test_elements_are_those_of_the_list(tmp_path_factory, values, indent, is_ascii, chunk_bytes):
    path = tmp_path_factory.getbasetemp() / "list"
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=is_ascii), "utf-8")
    with mock.patch.object(files, "_CHUNK_BYTES", chunk_bytes):
        found = JsonListSource.find(str(path))
    whole = path.read_bytes()
    assert [json.loads(whole[at : at + size]) for at, size in spans(found)] == values
    lines = [1 + whole.count(b"\n", 0, at) for at, _ in spans(found)]
    assert found.arrays["lines"].tolist() == lines
