"""Hostile texts, tokenizers with many control tokens, and what no text may change."""

import dataclasses
import functools
import json
import tempfile
from collections import Counter
from pathlib import Path

from metamorph_jax.data.conversation import Conversation, Image, Text, Turn
from metamorph_jax.data.templates import TEMPLATES, render_example
from metamorph_jax.data.tokenizer import load_tokenizer
from tests.golden_data import LLAVA

NAMED = ("finetune_right_pad_id", "eom_id", "python_tag", "step_id")
LLAMA31 = [f"<|{name}|>" for name in NAMED] + [
    f"<|reserved_special_token_{number}|>" for number in range(2, 248)
]
CORE = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id"]
CORE = [f"<|{name}|>" for name in CORE] + ["<image_start>", "<image_end>"]
TAGS = ["<image>", "<video>", "<im_start>", "<im_end>", "<|image|>", "{image_start}", "{bos}"]
OTHERS = ["</s>", "<s>", "<unk>", "[INST]", "[/INST]", "<<SYS>>", "<|im_start|>", "<|im_end|>"]
OTHERS += ["<|endoftext|>", "###", "### Human:", " ASSISTANT: ", "USER:", "\U000f0000", "\u2003"]
STRINGS = [*CORE, *LLAMA31, *TAGS, *OTHERS]
VARIANTS = (
    str,
    str.upper,
    str.title,
    lambda text: f" {text} ",
    lambda text: f"a{text}b",
    lambda text: text * 2,
    lambda text: text.replace("<", "\uff1c"),
    lambda text: text.replace("|", "|\u200b"),
    lambda text: text[:-1],
    lambda text: f"\n{text}\n\n",
)
# The tokenizers of tests/golden/llava that each template is tried with.
LLAMA3_TEMPLATES = ("metamorph_llama3", "llama3", "next_llama3", "cambrian_llama3", "jinja")
PAIRS = [(name, "bpe_llama3") for name in (*LLAMA3_TEMPLATES, "plain", "v1")]
PAIRS += [("qwen", "bpe_chatml"), ("mpt", "bpe_chatml"), ("plain", "sp_legacy")]
PAIRS += [(name, "sp_chatml_legacy") for name in ("mpt", "chatml_direct", "v1", "llama_2")]
PAIRS += [(name, "sp_chatml_nonlegacy") for name in ("mpt", "v0", "llava_v1", "mistral_instruct")]
assert {name for name, _ in PAIRS} == set(TEMPLATES)


@functools.cache
def tokenizer(name):
    """Returns a golden tokenizer; that of Llama 3 with all 256 special tokens of Llama 3.1."""
    return load_tokenizer(folder(name))


@functools.cache
def folder(name):
    """Returns the folder of `tokenizer(name)`."""
    source = LLAVA / "tokenizers" / name
    if name != "bpe_llama3":
        return source
    target = Path(tempfile.mkdtemp())
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    definition = json.loads((source / "tokenizer.json").read_text("utf-8"))
    added = definition["added_tokens"]
    first = added[-1]["id"] + 1
    added += [added[-1] | {"id": first + i, "content": text} for i, text in enumerate(LLAMA31)]
    (target / "tokenizer.json").write_text(json.dumps(definition), "utf-8")
    config = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    del config["added_tokens_decoder"]
    (target / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return target


def template_for(name, tokenizer_name):
    """Returns a template, with image tokens wherever the tokenizer has them."""
    has_tokens = tokenizer(tokenizer_name).special.image_start is not None
    return dataclasses.replace(TEMPLATES[name], image_tokens=has_tokens)


def dialogue(texts, name, images=0, system=None, media="a.png"):
    """Returns texts said in turn, images in front of the first, as far as a template writes it."""
    turns = [Turn("user", (*[Image(media)] * images, *_parts(texts[0])))]
    for number, text in enumerate(texts[1:], start=1):
        turns.append(Turn(("user", "assistant")[number % 2], _parts(text)))
    if system is not None and (name == "jinja" or TEMPLATES[name].system is not None):
        turns.insert(0, Turn("system", _parts(system)))
    return Conversation(tuple(turns), "f:1")


def _parts(text):
    return (Text(text),) if text else ()


def skeleton(example, used):
    """Returns what no text may change: control ids and their supervision, and image slots."""
    control = Counter(
        (token, learned)
        for token, learned, visual in zip(
            example.tokens.tolist(),
            example.supervised.tolist(),
            example.visual_index.tolist(),
            strict=True,
        )
        if visual < 0 and token in used.control_ids
    )
    return control, len(example.images), int((example.visual_index >= 0).sum())


def check_text(text, used):
    """Asserts that a text is text for a tokenizer, and comes back whole."""
    ids = used.encode_text(text)
    assert used.control_ids.isdisjoint(ids), text
    assert used.decode(ids) == text


def check_dialogue(name, tokenizer_name, texts, system=None, images=1):
    """Asserts that hostile texts leave a dialogue as harmless ones do."""
    used, template = tokenizer(tokenizer_name), template_for(name, tokenizer_name)
    attacked = dialogue(texts, name, images, system)
    harmless = dialogue(["x" for _ in texts], name, images, None if system is None else "x")
    found = render_example(attacked, template, used, 4)
    assert skeleton(found, used) == skeleton(render_example(harmless, template, used, 4), used)
