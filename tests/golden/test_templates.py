"""The references' templates, slips included, and where ours differ from them and why."""

import collections
import re

import numpy as np
import pytest

from metamorph_jax.data.conversation import Conversation, Image, Text, Turn
from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.reference import collate, reference_prompt_ids, reference_sample
from metamorph_jax.data.templates import render_prompt
from tests.golden.llava_templates import (
    CASES,
    GOLDEN,
    IGNORE,
    IMAGE,
    PROMPTS,
    golden_tokenizer,
    ids_and_labels,
    our_example,
    our_template,
    wrap_of,
)

pytestmark = pytest.mark.golden


def reference(case):
    return reference_sample(
        [(turn["from"], turn["value"]) for turn in case["conversations"]],
        case["protocol"],
        case["template"],
        golden_tokenizer(case["tokenizer"]),
        has_image=case["has_image"],
        wrap=wrap_of(case),
        limit=case["model_max_length"],
    )


@pytest.mark.parametrize("name", CASES)
def test_reference_mode_equals_the_reference(name):
    case = CASES[name]
    if "error" in case:
        with pytest.raises(AssertionError) as caught:
            reference(case)
        assert (type(caught.value).__name__, str(caught.value)) == (
            case["error"],
            case["error_text"],
        )
        return
    found = reference(case)
    assert found.ids == case["input_ids"]
    assert found.labels == case["labels"]
    assert found.mismatch == case["mismatch_warning"]


@pytest.mark.parametrize("name", PROMPTS)
def test_reference_prompts(name):
    case = PROMPTS[name]
    arguments = (case["turns"], case["template"], golden_tokenizer(case["tokenizer"]))
    if "error" in case:
        with pytest.raises(TypeError):
            reference_prompt_ids(*arguments)
        return
    assert reference_prompt_ids(*arguments) == case["input_ids"]


@pytest.mark.parametrize("case", GOLDEN["collation"])
def test_reference_batches(case):
    samples = [(sample["input_ids"], sample["labels"]) for sample in case["instances"]]
    ids, labels, mask = collate(
        samples,
        pad=case["pad_token_id"],
        limit=case["model_max_length"],
        side=case["padding_side"],
    )
    np.testing.assert_array_equal(ids, case["input_ids"])
    np.testing.assert_array_equal(labels, case["labels"])
    np.testing.assert_array_equal(mask, case["attention_mask"])


# Prompts that ours writes otherwise: gemma is no template of ours, plain drops what the user says,
# and v0 goes on from what it was trained on where the reference prompts with another format.
OTHER_PROMPTS = ("gen/next/gemma_instruct", "gen/llava-1.1/plain", "gen/llava-1.1/llava_v0")


@pytest.mark.parametrize("name", [name for name in PROMPTS if not name.startswith(OTHER_PROMPTS)])
def test_our_prompts_equal_the_references(name):
    case = PROMPTS[name]
    turns = []
    for number, text in enumerate(case["turns"]):
        first, *rest = text.split("<image>")
        parts = [Text(first)] if first else []
        for piece in rest:
            parts += [Image("a.png"), Text(piece)]
        turns.append(Turn(("user", "assistant")[number % 2], tuple(parts)))
    tokenizer = golden_tokenizer(case["tokenizer"])
    found = render_prompt(Conversation(tuple(turns), name), our_template(case), tokenizer, 1)
    expected = case["input_ids"]
    if case["template"] == "llava_llama_3":
        # Its prompts begin with two begin-of-text tokens, what it trains on with one: so do ours.
        begin, *expected = expected
        assert expected[0] == begin
    assert ids_and_labels(found) == (expected, [IGNORE] * len(expected))


def texts(case):
    return [turn["value"] for turn in case["conversations"]]


def tags_by_turn(case):
    return [text.count("<image>") if case["has_image"] else 0 for text in texts(case)]


def has_answer_image(case):
    pairs = zip(case["conversations"], tags_by_turn(case), strict=True)
    return any(tags and turn["from"] == "gpt" for turn, tags in pairs)


def moves_otherwise(case):
    """LLaVA-NeXT leaves white space around a turn whose one image is in front already."""
    if case["protocol"] != "next" or our_template(case).image_place != "front":
        return False
    turns = zip(texts(case), tags_by_turn(case), strict=True)
    return any(
        tags == 1 and text.startswith("<image>") and text != "<image>"
        and not re.fullmatch(r"<image>\n\S(.*\S)?", text, re.DOTALL)
        for text, tags in turns
    )  # fmt: skip


def counts_are_off(case):
    """The reference's counts of tokens go wrong in conversations of this tokenizer and template."""
    kind = (case["protocol"], case["template"], case["tokenizer"])
    later_rounds = len(case["conversations"]) > 2 and kind in (
        ("llava-1.1", "v1", "sp_nonlegacy"),
        ("next", "mpt", "sp_chatml_legacy"),
        ("next", "mpt", "bpe_chatml"),
    )
    second_image = case["protocol"] == "cambrian" and any(tags_by_turn(case)[2:])
    return later_rounds or second_image or case["template"] == "v0"


def is_cut(case):
    return "@" in case["id"] and not case["has_image"] and len(case.get("input_ids", ())) == case[
        "model_max_length"
    ]  # fmt: skip


# docs/templates.md explains each of these reasons under the same name.
REASONS = {
    "answer_image_unannounced": lambda case: (
        has_answer_image(case) and not case["mm_use_im_start_end"]
    ),
    "speakers_must_alternate": lambda case: case["id"].endswith("same_role_twice"),
    "empty_turn": lambda case: "" in texts(case),
    "token_in_text": lambda case: any(
        name in text for text in texts(case) for name in golden_tokenizer(case["tokenizer"]).names
    ),
    "separator_in_text": lambda case: any(
        mark in text for text in texts(case) for mark in (" ASSISTANT: ", "[/INST]")
    ),
    "tag_in_text": lambda case: not case["has_image"] and "<image>" in "".join(texts(case)),
    "several_images_in_a_turn": lambda case: (
        case["protocol"] in ("llava-1.1", "cambrian") and max(tags_by_turn(case)) > 1
    ),
    "image_in_front": moves_otherwise,
    "noise_marker": lambda case: "QA_GT_caption_based_noisy" in "".join(texts(case)),
    "line_break_after_header": lambda case: (
        case["tokenizer"].startswith("bpe") and any(text.startswith("\n") for text in texts(case))
    ),
    "counts_off": counts_are_off,
    "begin_twice": lambda case: (
        case["protocol"] == "cambrian" and case["tokenizer"] == "bpe_llama3"
    ),
    "cut_early": is_cut,
}


def outcome(case):
    """Returns ours in the reference's notation, or the error's class."""
    try:
        return ids_and_labels(our_example(case))
    except BadSample as error:
        return error.reason


@pytest.mark.parametrize("name", CASES)
def test_ours_differs_for_a_named_reason_only(name):
    case, found = CASES[name], outcome(CASES[name])
    reasons = [reason for reason, applies in REASONS.items() if applies(case)]
    if "error" in case:  # both refuse
        assert found == "wrong_conversation"
    elif not reasons:
        assert found == (case["input_ids"], case["labels"])
    elif "answer_image_unannounced" in reasons or "speakers_must_alternate" in reasons:
        assert found == "wrong_conversation"
    elif reasons == ["cut_early"]:
        count = len(case["input_ids"])
        assert tuple(part[:count] for part in found) == (case["input_ids"], case["labels"])
    elif set(reasons) <= {"counts_off", "separator_in_text"}:
        ids, labels = found
        assert ids == case["input_ids"]
        if case["mismatch_warning"]:  # whole sample masked there, learned here
            assert any(label != IGNORE for label in labels)


def test_every_reason_is_met_and_most_cases_are_equal():
    met, equal = collections.Counter(), 0
    for case in CASES.values():
        same = "error" not in case and outcome(case) == (case["input_ids"], case["labels"])
        equal += same
        if not same and "error" not in case:
            met.update(reason for reason, applies in REASONS.items() if applies(case))
    assert set(met) == set(REASONS)
    assert equal > 0.6 * len(CASES)


WHOLE_TURN = ("qwen", "next_llama3")  # these learn headers, too
ENDS = {"v1": "</s>", "llava_v1": "</s>", "llama_2": "</s>", "mistral_instruct": "</s>"}
ENDS |= {"mpt": "<|im_end|>", "chatml_direct": "<|im_end|>", "plain": "\n"}
ENDS |= {"cambrian_llama3": "<|eot_id|>", "metamorph_llama3": "<|eot_id|>", "v0": "\n###"}


def squeezed(text):
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if our_template(case).name in ENDS]
)
def test_ours_learns_each_answer_and_its_end(name):
    """An oracle of its own: what is supervised reads as the answers, whatever they contain."""
    case = CASES[name]
    if isinstance(outcome(case), str):
        return  # refused, see above
    example, end = our_example(case), ENDS[our_template(case).name]
    turns = case["conversations"]
    if turns[0]["from"] == "gpt":
        turns = turns[1:]
    answers = [turn["value"] for turn in turns if turn["from"] == "gpt"]
    expected = "".join(answer + end for answer in answers)
    if wrap := wrap_of(case):
        expected = expected.replace("<image>", "".join(wrap)) if case["has_image"] else expected
    tokenizer = golden_tokenizer(case["tokenizer"])
    learned = tokenizer.decode(example.tokens[example.supervised].tolist())
    assert squeezed(learned) == squeezed(expected)
    assert IMAGE not in example.tokens
    assert example.tokens.max() < tokenizer.vocab_size
