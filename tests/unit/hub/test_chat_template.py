"""Chat templates against the segments that the trainer writes of the same conversations."""

import jinja2.sandbox
import numpy as np
import pytest

from metamorph_jax.data.conversation import Conversation, Image, Text, Turn
from metamorph_jax.data.templates import TEMPLATES
from metamorph_jax.data.templates.segments import BEGIN, BEGIN_IF_ADDED, END, ImageSlot, Words
from metamorph_jax.errors import UserError
from metamorph_jax.hub.chat_template import to_jinja
from tests import injection

REFUSED = ("plain", "v0")
PAIRS = [pair for pair in injection.PAIRS if pair[0] not in (*REFUSED, "jinja")]
WORDS = ["What is this?", " two  spaces ", "line\nbreak", "  ", "quotes \"' \\n", "{{ x }}", "é🐱"]
IMAGE = "<image>"


def refuse(message):
    raise ValueError(message)


def compile_jinja(text):
    """Returns the template compiled as `transformers` does it."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(text)


def random_turns(random, has_system):
    def parts():
        found = []
        for _ in range(random.integers(1, 4)):
            if random.random() < 0.4:
                found.append(Image("a.png"))
            elif not found or isinstance(found[-1], Image):
                found.append(Text(str(random.choice(WORDS))))
        return tuple(found)

    turns = []
    for _ in range(random.integers(1, 4)):
        answer = (Text(str(random.choice(WORDS))),)
        turns += [Turn("user", parts()), Turn("assistant", answer)]
    turns = turns[: len(turns) - int(random.integers(0, 2))]
    if has_system and random.random() < 0.4:
        turns.insert(0, Turn("system", (Text(str(random.choice(WORDS))),)))
    return tuple(turns)


def written(template, turns, tokenizer):
    """Returns what the trainer writes, as one string."""
    names = {id_: name for name, id_ in tokenizer.names.items()}
    special = tokenizer.special
    generic = {BEGIN: special.begin_of_text, END: special.end_of_text}
    generic[BEGIN_IF_ADDED] = special.begin_of_text if tokenizer.adds_begin else None
    is_prompt = turns[-1].role == "user"
    text = ""
    for segment in template.segments(Conversation(turns, "f:1"), is_prompt):
        if isinstance(segment, ImageSlot):
            text += IMAGE
        elif isinstance(segment, Words):
            text += segment.text
        elif segment.name in generic:
            text += names.get(generic[segment.name], "")
        elif not segment.name.startswith("{image_"):
            text += segment.name
    return text, is_prompt


def messages_of(turns):
    return [
        {
            "role": turn.role,
            "content": [
                {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "image"}
                for part in turn.parts
            ],
        }
        for turn in turns
    ]


@pytest.mark.parametrize(("name", "tokenizer_name"), PAIRS)
def test_the_same_text_as_in_training(name, tokenizer_name):
    template, tokenizer = TEMPLATES[name], injection.tokenizer(tokenizer_name)
    jinja = compile_jinja(to_jinja(template, tokenizer, IMAGE))
    random = np.random.default_rng(0)
    for _ in range(100):
        turns = random_turns(random, template.system is not None)
        expected, is_prompt = written(template, turns, tokenizer)
        found = jinja.render(messages=messages_of(turns), add_generation_prompt=is_prompt)
        assert found == expected
        plain = [
            message | {"content": message["content"][0]["text"]}
            for message, turn in zip(messages_of(turns), turns, strict=True)
            if len(turn.parts) == 1 and isinstance(turn.parts[0], Text)
        ]
        if len(plain) == len(turns):
            assert jinja.render(messages=plain, add_generation_prompt=is_prompt) == expected


@pytest.mark.parametrize("name", REFUSED)
def test_what_jinja_cannot_write(name):
    with pytest.raises(UserError, match=f"template {name} cannot be written"):
        to_jinja(TEMPLATES[name], injection.tokenizer("bpe_llama3"), IMAGE)


def test_a_turn_that_the_template_lacks():
    tokenizer = injection.tokenizer("bpe_llama3")
    jinja = compile_jinja(to_jinja(TEMPLATES["metamorph_llama3"], tokenizer, IMAGE))
    for role in ("system", "tool"):
        with pytest.raises(ValueError, match=f"no turn by {role}"):
            jinja.render(messages=[{"role": role, "content": "x"}])
