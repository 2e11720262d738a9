"""D16: fuzzed records, 5,000 of them; nothing leaves but records and our own complaints."""

import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.media import ImageBytes
from metamorph_jax.data.records import RawTurn, Record, parse_record
from metamorph_jax.data.sources.json_text import decode_json

many = settings(deadline=None, max_examples=2500, suppress_health_check=list(HealthCheck))
MAX_SECONDS = 2.0

words = st.sampled_from(
    [
        "",
        "a.png",
        "human",
        "gpt",
        "user",
        "image",
        "text",
        "<image>",
        "none",
        "nan",
        "\ud83d",
        "é\0",
    ]
)
scalars = st.one_of(
    st.none(), st.booleans(), st.just(10**40), st.just(float("nan")), st.binary(max_size=2), words
)
keys = st.sampled_from(
    ["from", "value", "role", "content", "type", "text", "image", "bytes", "path", "bytes_b64", "x"]
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=6,
)
piece = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": words}),
    st.fixed_dictionaries({"type": st.just("image")}, optional={"image": anything}),
    anything,
)
content = st.one_of(words, st.lists(piece, max_size=3), anything)
turn = st.one_of(
    st.fixed_dictionaries({"from": words, "value": content}),
    st.fixed_dictionaries({"role": words, "content": content}),
    anything,
)
image = st.one_of(words, st.binary(max_size=3), anything)
images = st.one_of(image, st.lists(image, max_size=3))
turns = st.one_of(st.lists(turn, max_size=3), anything)
record = st.one_of(
    anything,
    st.fixed_dictionaries(
        {},
        optional={
            "image": images,
            "images": images,
            "video": images,
            "caption": st.one_of(words, anything),
            "conversations": turns,
            "messages": turns,
            "id": anything,
        },
    ),
)
# Pieces of JSON, in an order that is almost right.
symbols = list('{}[],:"\\1- \n\0\ufeff')
names = [
    '"conversations"',
    '"from"',
    '"value"',
    '"image"',
    '"a"',
    r'"\ud83d"',
    "1e9",
    "NaN",
    "null",
]
tokens = st.lists(st.sampled_from(symbols + names), max_size=30).map("".join)


def check(fields) -> None:
    """Either all parts have the types that the rest of the road relies on, or one is refused."""
    begun = time.monotonic()
    try:
        parsed = parse_record(fields, "FILE", 3)
    except BadSample as error:
        assert str(error).startswith("FILE:3: ")
        str(error).encode()  # can be printed and written to the quarantine
    else:
        check_record(parsed)
    assert time.monotonic() - begun < MAX_SECONDS


def check_record(parsed: Record) -> None:
    media = [*parsed.images, *(parsed.video if isinstance(parsed.video, tuple) else ())]
    texts = [medium for medium in media if isinstance(medium, str)]
    assert all(medium.data for medium in media if isinstance(medium, ImageBytes))
    assert all(isinstance(medium, str | ImageBytes) for medium in media)
    texts += [text for text in (parsed.caption, parsed.video) if isinstance(text, str)]
    for raw in parsed.turns:
        assert isinstance(raw, RawTurn)
        texts += [raw.speaker, raw.text, *(text for text in raw.pieces or () if text is not None)]
    "".join(texts).encode()  # all are texts, and whole
    assert parsed.images or parsed.turns or parsed.video or parsed.caption
    assert isinstance(parsed.extra, dict) and "image" not in parsed.extra


@many
@given(record)
def test_d16_fields(fields):
    check(fields)


@many
@given(st.one_of(tokens.map(lambda text: text.encode()), st.binary(max_size=40)))
def test_d16_text(data):
    begun = time.monotonic()
    try:
        fields = decode_json(data, "FILE", 3)
    except BadSample as error:
        assert str(error).startswith("FILE:")
        str(error).encode()
    else:
        check(fields)
    assert time.monotonic() - begun < MAX_SECONDS
