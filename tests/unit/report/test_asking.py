"""Held-out questions: what is read from the file, what counts as right, what is written down."""

import json

import numpy as np
import pytest
from PIL import Image

from metamorph_jax.errors import UserError
from metamorph_jax.report.asking import (
    AnsweredQuestion,
    Question,
    accuracy_by_kind,
    judge,
    load_questions,
    normalize,
    write_answers,
)


def record(question, answer, **extra):
    turns = [{"from": "human", "value": question}]
    if answer is not None:
        turns.append({"from": "gpt", "value": answer})
    return {"conversations": turns, **extra}


def write(folder, records):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "a.png")
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in records))
    return path


def question(expected="It is a three.", label="", kind=""):
    return Question(identity="x", text="?", images=(), expected=expected, kind=kind, label=label)


def test_first_question_of_each_record_is_read(tmp_path):
    path = write(
        tmp_path,
        [
            record("<image>\nWhich?", " A three. ", image="a.png", kind="digit", label="three"),
            record("Hello", "Hi", id="greeting"),
        ],
    )
    first, second = load_questions(path, tmp_path)
    assert first.text == "<image>\nWhich?"
    assert first.images == ((tmp_path / "a.png").resolve(),)
    assert (first.expected, first.kind, first.label) == ("A three.", "digit", "three")
    assert first.identity == f"{path}:1"
    assert second == Question(identity="greeting", text="Hello", images=(), expected="Hi")


def test_limit_spreads_over_the_file(tmp_path):
    path = write(tmp_path, [record(str(index), "x") for index in range(10)])
    assert [q.text for q in load_questions(path, tmp_path, 3)] == ["0", "3", "6"]
    assert len(load_questions(path, tmp_path, 99)) == 10


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (record("<image>", "x", image="absent.png"), r"questions\.jsonl:1: image 'absent.png'"),
        (record("<image>", "x", image="../a.png"), "outside its folder"),
        (record("Hello", None), r"questions\.jsonl:1: the question has no answer"),
    ],
)
def test_bad_records_are_named(tmp_path, line, message):
    folder = tmp_path / "data"
    folder.mkdir()
    write(tmp_path, [])
    with pytest.raises(UserError, match=message):
        load_questions(write(folder, [line]), folder)


@pytest.mark.parametrize(
    ("said", "is_right"),
    [
        ("it is  a THREE", True),
        ("It is a three!", True),
        ("It is three.", False),
        ("", False),
    ],
)
def test_without_label_the_words_must_be_the_same(said, is_right):
    assert judge(question(), said) is is_right


@pytest.mark.parametrize(
    ("said", "is_right"),
    [
        ("Three", True),
        ("I see a three, clearly.", True),
        ("thirty-three", True),
        ("threes", False),
        ("a three or a five", False),
        ("a five", False),
        ("", False),
    ],
)
def test_with_label_that_word_and_no_other_label_counts(said, is_right):
    assert judge(question(label="three"), said, frozenset({"three", "five"})) is is_right


def test_normalize_keeps_pictures_apart():
    assert normalize("Here it is: <image>") == "here it is <image>"


def test_counts_by_kind_and_answers_file(tmp_path):
    answered = [
        AnsweredQuestion(question(kind="b"), "no", False),
        AnsweredQuestion(question(kind="a"), "yes", True),
        AnsweredQuestion(question(kind="b"), "é", True),
    ]
    assert list(accuracy_by_kind(answered).items()) == [("b", (1, 2)), ("a", (1, 1))]
    write_answers(tmp_path / "answers.jsonl", answered)
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["right"] for line in lines] == [False, True, True]
    assert json.loads(lines[2])["answer"] == "é"
