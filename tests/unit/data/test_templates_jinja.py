"""The folder's own chat template: whatever it does, what was said stays what was said."""

import shutil

import pytest

from metamorph_jax.data.conversation import Conversation, Image, Text, Turn
from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.templates import TEMPLATES, check_template, render_example, render_prompt
from metamorph_jax.data.tokenizer import load_tokenizer
from metamorph_jax.errors import UserError
from tests.golden_data import LLAVA
from tests.injection import dialogue

JINJA = TEMPLATES["jinja"]
PLAIN = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|eot_id|>{% endfor %}"
PROMPT = "{% if add_generation_prompt %}[assistant]{% endif %}"


@pytest.fixture
def load(tmp_path):
    def load(source):
        folder = tmp_path / "tokenizer"
        shutil.copytree(LLAVA / "tokenizers" / "bpe_llama3", folder)
        (folder / "chat_template.jinja").write_text(source, "utf-8")
        return load_tokenizer(folder)

    return load


def written(example, tokenizer, only=None):
    kept = example.visual_index < 0 if only is None else only
    return tokenizer.decode(example.tokens[kept].tolist())


def test_answers_and_what_ends_them_are_learned(load):
    tokenizer = load(PLAIN + PROMPT)
    check_template(JINJA, tokenizer)
    example = render_example(dialogue(["Hi", "Yo", "And?", ""], "jinja"), JINJA, tokenizer, 2)
    expected = "[user]Hi<|eot_id|>[assistant]Yo<|eot_id|>[user]And?<|eot_id|>[assistant]<|eot_id|>"
    assert written(example, tokenizer) == expected
    assert written(example, tokenizer, example.supervised) == "Yo<|eot_id|><|eot_id|>"


def test_images_stand_where_they_were_said(load):
    tokenizer = load(PLAIN + PROMPT)
    turns = (Turn("user", (Text("A "), Image("a"), Text(" b"))), Turn("assistant", (Image("b"),)))
    example = render_example(Conversation(turns, "f:1"), JINJA, tokenizer, 2)
    assert example.images == ("a", "b") and example.image_is_answer == (False, True)
    assert "A <image_start><image_end> b<|eot_id|>" in written(example, tokenizer)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (PLAIN.replace("m['content']", "m['content'] | trim"), "a  b"),
        (PLAIN.replace("m['content']", "m['content'].rstrip()"), "\n a  b"),
        (PLAIN.replace("m['content']", "m['content'].lstrip()"), "a  b "),
        (PLAIN, "\n a  b "),
    ],
)
def test_white_space_is_removed_as_the_template_removes_it(load, source, expected):
    tokenizer = load(source + PROMPT)
    prompt = render_prompt(dialogue(["\n a  b "], "jinja"), JINJA, tokenizer, 2)
    assert written(prompt, tokenizer) == f"[user]{expected}<|eot_id|>[assistant]"


def test_a_system_text_may_move_into_the_question(load):
    tokenizer = load(
        "{% set s = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
        "{% for m in messages %}{% if m['role'] == 'user' %}[user]{% if loop.index0 <= 1 %}{{ s }}"
        "{% endif %}{{ m['content'] }}{% elif m['role'] == 'assistant' %}[assistant]"
        "{{ m['content'] }}<|eot_id|>{% endif %}{% endfor %}" + PROMPT
    )
    example = render_example(dialogue(["q", "a"], "jinja", system="S "), JINJA, tokenizer, 2)
    assert written(example, tokenizer) == "[user]S q[assistant]a<|eot_id|>"


def test_tags_that_mark_answers_for_transformers_are_understood(load):
    tokenizer = load(
        "{% for m in messages %}[{{ m['role'] }}]{% generation %}{{ m['content'] }}<|eot_id|>"
        "{%- endgeneration %}{% endfor %}" + PROMPT
    )
    example = render_example(dialogue(["q", "a"], "jinja"), JINJA, tokenizer, 2)
    assert written(example, tokenizer) == "[user]q<|eot_id|>[assistant]a<|eot_id|>"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('no system here') }}", "no system here"),
        (PLAIN.replace("messages", "messages[1:]"), "leaves out a turn"),
        (PLAIN + "{{ messages[0]['content'] }}", "writes one twice"),
        (PLAIN + "{% if add_generation_prompt %}[bot]{% endif %}", "opens an answer by"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ strftime_now('%Y') }}", "undefined"),
    ],
)
def test_what_a_template_does_not_write_is_a_bad_sample(load, source, message):
    tokenizer = load(source + PROMPT if "[bot]" not in source else source)
    with pytest.raises(BadSample) as caught:
        render_example(dialogue(["q", "a"], "jinja"), JINJA, tokenizer, 2)
    assert str(caught.value).startswith("f:1: the chat template of ")
    assert message in str(caught.value)
    with pytest.raises(UserError, match="the chat template"):  # before anything is read
        check_template(JINJA, tokenizer)


def test_a_folder_without_a_template_says_so(load):
    with pytest.raises(UserError, match="is no jinja"):
        check_template(JINJA, load("{% for %}"))
    with pytest.raises(UserError, match="has no chat template"):
        check_template(JINJA, load_tokenizer(LLAVA / "tokenizers" / "sp_legacy"))
