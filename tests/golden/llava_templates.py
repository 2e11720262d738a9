"""The golden templates: cases, tokenizers, and what the references call our templates."""

import dataclasses
import functools
import json

import numpy as np

from metamorph_jax.data.conversation import read_conversation
from metamorph_jax.data.records import parse_record
from metamorph_jax.data.templates import TEMPLATES, render_example
from metamorph_jax.data.tokenizer import load_tokenizer
from tests.golden_data import LLAVA

GOLDEN = json.loads((LLAVA / "templates.json").read_text("utf-8"))
CASES = {case["id"]: case for case in GOLDEN["cases"]}
PROMPTS = {case["id"]: case for case in GOLDEN["generation_prompts"]}
IMAGE, IGNORE = -200, -100
OURS = {
    "plain": "plain",
    "v0": "v0",
    "llava_v0": "v0",
    "v1": "v1",
    "vicuna_v1": "v1",
    "llava_v1": "llava_v1",
    "llava_llama_2": "llama_2",
    "mistral_instruct": "mistral_instruct",
    "mpt": "mpt",
    "mistral_direct": "chatml_direct",
    "qwen_1_5": "qwen",
    "llava_llama_3": "next_llama3",
    "llama_v3": "cambrian_llama3",
    "llama3": "metamorph_llama3",
}


@functools.cache
def golden_tokenizer(name):
    return load_tokenizer(LLAVA / "tokenizers" / name)


def wrap_of(case):
    """Returns what the reference writes around image tags in a case."""
    if not case["mm_use_im_start_end"]:
        return None
    llava = ("<im_start>", "<im_end>")
    return ("<image_start>", "<image_end>") if case["protocol"] == "metamorph" else llava


def our_template(case):
    name, wraps = OURS[case["template"]], case.get("mm_use_im_start_end", False)
    return dataclasses.replace(TEMPLATES[name], image_tokens=wraps)


def our_example(case):
    """Returns our example of a case, one visual token an image."""
    tags = sum(turn["value"].count("<image>") for turn in case["conversations"])
    images = [f"{index}.png" for index in range(tags if case["has_image"] else 0)]
    fields = {"image": images, "conversations": case["conversations"]}
    conversation = read_conversation(parse_record(fields, case["id"], 1))
    return render_example(conversation, our_template(case), golden_tokenizer(case["tokenizer"]), 1)


def ids_and_labels(example):
    """Returns an example in the references' notation."""
    is_visual = example.visual_index >= 0
    ids = np.where(is_visual, IMAGE, example.tokens)
    learned = example.supervised | example.visual_is_answer
    return ids.tolist(), np.where(learned, ids, IGNORE).tolist()
