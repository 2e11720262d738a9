"""I1: every special string, in every spelling and every place, stays text."""

import pytest

from metamorph_jax.data.templates import render_example
from tests.injection import (
    CORE,
    LLAMA31,
    PAIRS,
    STRINGS,
    VARIANTS,
    check_dialogue,
    check_text,
    dialogue,
    skeleton,
    template_for,
    tokenizer,
)

TOKENIZERS = sorted({name for _, name in PAIRS})


@pytest.mark.parametrize("name", TOKENIZERS)
def test_i1_texts_are_text_and_come_back_whole(name):
    used = tokenizer(name)
    for string in STRINGS:
        for variant in VARIANTS:
            check_text(variant(string), used)


def test_i1_the_tokenizer_has_all_256_control_tokens():
    names = tokenizer("bpe_llama3").names
    assert set(CORE) | set(LLAMA31) <= set(names)
    assert len([name for name in names if name.startswith("<|")]) >= 256


@pytest.mark.parametrize(("template", "name"), PAIRS)
def test_i1_system_user_and_assistant_texts(template, name):
    for string in STRINGS:
        text = " | ".join(variant(string) for variant in VARIANTS)
        check_dialogue(template, name, [text, text], system=text)
    check_dialogue(template, name, [CORE[0], CORE[4]], system=CORE[3])


@pytest.mark.parametrize(("template", "name"), PAIRS)
def test_i1_file_names(template, name):
    used, written = tokenizer(name), template_for(template, name)
    plain = render_example(dialogue(["x", "y"], template, images=1), written, used, 4)
    for string in STRINGS:
        conversation = dialogue(["x", "y"], template, images=1, media=f"{string}.png")
        found = render_example(conversation, written, used, 4)
        assert found.images == (f"{string}.png",)
        assert skeleton(found, used) == skeleton(plain, used)
        assert found.tokens.tolist() == plain.tokens.tolist()
