"""What a conversation's words tell about how the data was made.

All of it can be trained on: control tokens and tags in a text are only characters to us. But they
are signs that a template was applied before, that a tag went wrong, or that a text is damaged.
"""

import re
from collections.abc import Iterable, Iterator

from metamorph_jax.data.conversation import IMAGE_TAG, Conversation, Text, Turn

# Of the usual chat formats: found in a text, they come from a template that was applied before.
_COMMON = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<im_start>",
    "<im_end>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<image_start>",
    "<image_end>",
    "<|image|>",
    "[INST]",
    "[/INST]",
)
_TAG = re.compile(f"{re.escape(IMAGE_TAG)}|<video>")
# C0 and C1 without tab and line ends, and the mark of bytes that were no text.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd]")
_MIN_NAME_LENGTH = 3  # tokenizers also add plain words and runs of spaces
Trouble = tuple[str, str]  # reason, what is wrong and what to do


def special_pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Returns what finds control tokens spelled in a text.

    Args:
        names: of the tokenizer, added to those of the usual chat formats.
    """
    known = {*_COMMON, *(name for name in names if len(name.strip()) >= _MIN_NAME_LENGTH)}
    longest_first = sorted(known, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first)))


def text_troubles(conversation: Conversation, special: re.Pattern[str]) -> Iterator[Trouble]:
    """Yields (reason, trouble) of the words of a conversation, each reason at most once."""
    texts = [
        (number, part.text)
        for number, turn in enumerate(conversation.turns, start=1)
        for part in turn.parts
        if isinstance(part, Text)
    ]
    for reason, pattern, advice in (
        (
            "image_tag_in_text",
            _TAG,
            "it stays text and shows nothing; list its image, or remove it",
        ),
        ("special_token_in_text", special, "it stays text; remove it unless it is meant as words"),
        ("control_characters", _CONTROL, "the text was damaged on its way; clean it"),
    ):
        hits = [(number, hit) for number, text in texts for hit in pattern.findall(text)]
        if hits:
            number, hit = hits[0]
            more = f" and {len(hits) - 1} more" * (len(hits) > 1)
            yield reason, f"turn {number} has {hit!a}{more} in its text: {advice}"
    yield from _answer_troubles(conversation.turns)


def _answer_troubles(turns: tuple[Turn, ...]) -> Iterator[Trouble]:
    is_empty = is_echo = False
    for number, turn in enumerate(turns, start=1):
        if not turn.is_answer:
            continue
        if not is_empty and not _words(turn) and len(turn.parts) == _num_texts(turn):
            is_empty = True
            trouble = f"turn {number}, an answer, is empty: only its end is learned; fill or remove"
            yield "empty_answer", trouble
        question = turns[number - 2] if number > 1 else None
        if not is_echo and question and _words(turn) and _words(turn) == _words(question):
            is_echo = len(turn.parts) == _num_texts(turn)
            if is_echo:
                yield (
                    "answer_repeats_question",
                    f"turn {number}, an answer, says the same as its question; correct it",
                )


def _num_texts(turn: Turn) -> int:
    return sum(isinstance(part, Text) for part in turn.parts)


def _words(turn: Turn) -> str:
    """Returns what a turn says, without differences that do not matter."""
    joined = " ".join(part.text for part in turn.parts if isinstance(part, Text))
    return " ".join(joined.split()).casefold()
