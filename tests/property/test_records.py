"""Whatever JSON a file holds, reading it gives a conversation or a message that names the line."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from metamorph_jax.data.conversation import Conversation, read_conversation
from metamorph_jax.data.records import RecordFile, parse_record
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
    path = tmp_path_factory.getbasetemp() / "data.jsonl"
    path.write_bytes(data)
    conversation_or_complaint(lambda: read_conversation(RecordFile(path)[0]))
