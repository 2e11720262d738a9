"""Signs in a conversation's words: what is reported, once, and what is ordinary."""

import pytest

from metamorph_jax.data.conversation import Conversation, Image, Text, Turn
from metamorph_jax.data.lint.texts import special_pattern, text_troubles

SPECIAL = special_pattern(["<|eot_id|>", "<s>", "<|reserved|>", "  ", "a"])


def troubles(*turns: list) -> list[tuple[str, str]]:
    """Returns what is said of turns by the user and the assistant in turn; "" is an empty turn."""
    made = [
        Turn(("user", "assistant")[n % 2], tuple(Text(p) if isinstance(p, str) else p for p in t))
        for n, t in enumerate(turns)
    ]
    return list(text_troubles(Conversation(tuple(made), "f:1"), SPECIAL))


def reasons(*turns: list) -> list[str]:
    return [reason for reason, _ in troubles(*turns)]


@pytest.mark.parametrize(
    "words",
    [
        "Plain words, <b>markup</b>, 3 < 4 > 2, a | b, [1].",
        "Tabs\tand\r\nline ends.",
        "日本語, émigré, 🦓, \u200bzero width",
        "<im age> < image >",
    ],
)
def test_ordinary_words_are_fine(words):
    assert reasons([words], ["Yes."]) == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("say <|eot_id|> now", "special_token_in_text"),
        ("<|reserved|>", "special_token_in_text"),
        ("a</s> <s>", "special_token_in_text"),
        ("<|im_start|>user", "special_token_in_text"),  # of another model's format
        ("<image_start>", "special_token_in_text"),
        ("[INST] hello", "special_token_in_text"),
        ("look: <image>", "image_tag_in_text"),
        ("<video>", "image_tag_in_text"),
        ("bell \x07", "control_characters"),
        ("\x9b31m", "control_characters"),
        ("caf\ufffd", "control_characters"),
    ],
)
@pytest.mark.parametrize("by", [0, 1])
def test_signs_are_found_in_questions_and_answers(words, reason, by):
    turns = [["Question?"], ["Answer."]]
    turns[by] = [words]
    assert reasons(*turns) == [reason]


def test_the_longest_token_is_named_and_hits_are_counted():
    ((reason, trouble),) = troubles(["<|eot_id|><|eot_id|>"], ["<s>"])
    assert reason == "special_token_in_text"
    assert trouble.startswith("turn 1 has '<|eot_id|>' and 2 more in its text")


def test_what_is_shown_of_control_characters_is_harmless():
    ((_, trouble),) = troubles(["\x1b[2J"], ["Yes."])
    assert "\x1b" not in trouble and "\\x1b" in trouble


def test_answers_without_words_are_empty_unless_they_show_something():
    assert reasons(["Be silent."], []) == ["empty_answer"]
    assert reasons(["Be silent."], [" \n"]) == ["empty_answer"]
    assert reasons(["Draw."], [Image("a.png")]) == []
    assert reasons([], ["An answer to nothing."]) == []
    assert reasons(["a?"], [], ["b?"], []) == ["empty_answer"]  # told once


def test_answers_that_repeat_the_question():
    assert reasons(["Say  it"], ["say it\n"]) == ["answer_repeats_question"]
    assert reasons([Image("a.png"), "\nA cat."], ["A cat."]) == ["answer_repeats_question"]
    assert reasons(["A cat."], ["A cat.", Image("a.png")]) == []  # it is drawn
    assert reasons(["One?"], ["Two."], ["Three?"], ["One?"]) == []
