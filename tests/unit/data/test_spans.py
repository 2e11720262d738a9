"""Spans: everything of an example in order, control tokens and images told from words."""

import pytest

from metamorph_jax.data.conversation import Conversation, Image, Text, Turn
from metamorph_jax.data.spans import (
    ImageSpan,
    TextSpan,
    conversation_spans,
    example_spans,
    spans_as_text,
)
from metamorph_jax.data.templates import TEMPLATES, render_example
from tests.data_files import small_tokenizer

CONVERSATION = Conversation(
    (
        Turn("user", (Image("a.png"), Image("b.png"), Text(" Which? <|eot_id|>"))),
        Turn("assistant", (Text("This: "), Image("a.png"))),
    ),
    "f:1",
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def spans(conversation, tokenizer):
    example = render_example(conversation, TEMPLATES["llama3"], tokenizer, 3)
    return example, example_spans(example, tokenizer)


def test_spans_cover_the_example(tokenizer):
    example, found = spans(CONVERSATION, tokenizer)
    images = [span for span in found if isinstance(span, ImageSpan)]
    assert images == [
        ImageSpan("a.png", False, 3, 0),
        ImageSpan("b.png", False, 3, 1),
        ImageSpan("a.png", True, 3, 2),
    ]
    texts = [span for span in found if isinstance(span, TextSpan)]
    text_ids = example.tokens[example.visual_index < 0].tolist()
    assert "".join(span.text for span in texts) == tokenizer.decode(text_ids)


def test_a_text_that_spells_a_control_token_is_no_control(tokenizer):
    _, found = spans(CONVERSATION, tokenizer)
    spelled = [span for span in found if isinstance(span, TextSpan) and "Which" in span.text]
    assert spelled == [TextSpan(" Which? <|eot_id|>", False, False)]
    controls = [span for span in found if isinstance(span, TextSpan) and span.is_control]
    ends = [span for span in controls if "<|eot_id|>" in span.text]
    assert [span.is_supervised for span in ends] == [False, True]


def test_as_text(tokenizer):
    _, found = spans(CONVERSATION, tokenizer)
    written = spans_as_text(found)
    assert "<image a.png, 3 tokens>" in written
    assert written.count("[") == written.count("]") == 2  # before and behind the answer image
    assert written.endswith(
        "[This: <image_start>]<answer image a.png, 3 tokens>[<image_end><|eot_id|>]"
    )


def test_text_only_and_empty_answers(tokenizer):
    silent = Conversation((Turn("user", (Text("Hush."),)), Turn("assistant", ())), "f:1")
    example, found = spans(silent, tokenizer)
    assert not any(isinstance(span, ImageSpan) for span in found)
    assert [span.text for span in found if span.is_supervised] == ["<|eot_id|>"]
    assert len(example) > 0


def test_conversations_are_shown_without_a_template():
    assert conversation_spans(CONVERSATION) == [
        TextSpan("user:", False, True),
        ImageSpan("a.png", False, 0, 0),
        ImageSpan("b.png", False, 0, 1),
        TextSpan(" Which? <|eot_id|>", False, False),
        TextSpan("assistant:", False, True),
        TextSpan("This: ", True, False),
        ImageSpan("a.png", True, 0, 2),
    ]
