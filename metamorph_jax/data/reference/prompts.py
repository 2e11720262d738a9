"""The references' prompts as one string: where image tags are moved to, and how turns are joined.

Strings are searched and joined here because the references do; `templates/` does not. Empty
messages are written as the references write them: as if the speaker were about to speak.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from metamorph_jax.data.templates import system_texts

TAG = "<image>"
NOISE = "QA_GT_caption_based_noisy"  # a marker in some public files, which LLaVA-NeXT deletes
Style = Literal["two", "single", "llama_2", "mpt", "chatml", "llama_3", "cambrian", "plain"]


@dataclasses.dataclass(frozen=True)
class PromptStyle:
    """How one reference writes a conversation.

    Attributes:
        style: which of the rules of `join_turns`.
        system: text, with its markup where the style has none of its own.
        roles: of user and assistant, as written.
        separator: between turns.
        end: after an answer, where that differs.
    """

    style: Style
    system: str
    roles: tuple[str, str]
    separator: str
    end: str = ""


_CHATML = ("<|im_start|>user\n", "<|im_start|>assistant\n")
_VICUNA = ("USER", "ASSISTANT")
_V1 = PromptStyle("two", system_texts.VICUNA, _VICUNA, " ", "</s>")
_HUMAN = dataclasses.replace(_V1, system=system_texts.LLAVA_HUMAN)
_V0 = PromptStyle("single", system_texts.LLAVA_HUMAN, ("Human", "Assistant"), "###")
_MPT = PromptStyle("mpt", f"<|im_start|>system\n{system_texts.MPT}", _CHATML, "<|im_end|>")
STYLES = {
    "v1": _V1,
    "vicuna_v1": _V1,
    "llava_v1": _HUMAN,
    "v0": _V0,
    "llava_v0": _V0,
    "plain": PromptStyle("plain", "", ("", ""), "\n"),
    "llava_llama_2": PromptStyle("llama_2", system_texts.LLAVA_LLAMA_2, _VICUNA, "<s>", "</s>"),
    "mistral_instruct": PromptStyle("llama_2", "", _VICUNA, "", "</s>"),
    "mpt": _MPT,
    "mistral_direct": dataclasses.replace(
        _MPT, system=f"<|im_start|>system\n{system_texts.CHATML_DIRECT}"
    ),
    "qwen_1_5": PromptStyle(
        "chatml", f"<|im_start|>system\n{system_texts.QWEN}", _CHATML, "<|im_end|>\n"
    ),
    "llava_llama_3": PromptStyle("llama_3", system_texts.LLAVA_LLAMA_2, ("user", "assistant"), ""),
    "llama_v3": PromptStyle("cambrian", system_texts.CAMBRIAN, ("user", "assistant"), "<|eot_id|>"),
    "llama3": PromptStyle(
        "mpt",
        "<|begin_of_text|>",
        (
            "<|start_header_id|>user<|end_header_id|>\n",
            "<|start_header_id|>assistant<|end_header_id|>\n",
        ),
        "<|eot_id|>",
    ),
    "gemma_instruct": PromptStyle(
        "chatml", "", ("<start_of_turn>user\n", "<start_of_turn>model\n"), "<end_of_turn>\n"
    ),
}


def place_images(text: str, protocol: str, wrap: tuple[str, str] | None) -> str:
    """Returns a turn with its image tags where the reference puts them.

    LLaVA 1.x and Cambrian keep one tag of a turn and put it on a line in front; LLaVA-NeXT does so
    only with a tag that is alone and not in front already; MetaMorph leaves all where they are.

    Args:
        text: of one turn, with the tags of its images.
        protocol: `llava-1.1`, `next`, `cambrian` or `metamorph`.
        wrap: what stands around each tag.

    **Source:** llava.md section 1.2.
    """
    count = text.count(TAG)
    alone = count == 1 and not text.startswith(TAG)
    if count and (protocol in ("llava-1.1", "cambrian") or (protocol == "next" and alone)):
        text = f"{TAG}\n{text.replace(TAG, '').strip()}".strip()
    if wrap is not None:
        text = text.replace(TAG, f"{wrap[0]}{TAG}{wrap[1]}")
    return text.replace(NOISE, "") if protocol == "next" else text


def join_turns(style: PromptStyle, texts: Sequence[str]) -> str:
    """Returns the prompt of turns that alternate between user and assistant.

    **Source:** llava.md section 1.5; `prompt` of the golden templates.
    """
    return _JOIN[style.style](style, [(number % 2, text) for number, text in enumerate(texts)])


_Turns = list[tuple[int, str]]


def _two(style: PromptStyle, turns: _Turns) -> str:
    ends = (style.separator, style.end)
    parts = [
        f"{style.roles[side]}: {text}{ends[side]}" if text else f"{style.roles[side]}:"
        for side, text in turns
    ]
    return style.system + style.separator + "".join(parts)


def _single(style: PromptStyle, turns: _Turns) -> str:
    return _two(dataclasses.replace(style, end=style.separator), turns)


def _llama_2(style: PromptStyle, turns: _Turns) -> str:
    system = f"<<SYS>>\n{style.system}\n<</SYS>>\n\n" if style.system else ""
    parts = []
    for number, (side, text) in enumerate(turns):
        text = text if number else system + text
        if text and side:
            parts.append(f" {text} {style.end}")
        elif text:
            parts.append(f"{style.separator}[INST] {text} [/INST]")
    return "".join(parts).lstrip(style.separator)  # a set of characters, not a prefix


def _mpt(style: PromptStyle, turns: _Turns) -> str:
    # MetaMorph's system text is its begin-of-text, after which no separator stands.
    head = style.system + (style.separator if style.system.startswith("<|im_start|>") else "")
    parts = [style.roles[side] + (text + style.separator if text else "") for side, text in turns]
    return head + "".join(parts)


def _chatml(style: PromptStyle, turns: _Turns) -> str:
    head = style.system + style.separator if style.system else ""
    return head + "".join(style.roles[side] + text + style.separator for side, text in turns)


def llama_3_message(role: str, text: str) -> str:
    """Returns one message of the Llama-3 instruct template."""
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text.strip()}<|eot_id|>"


def _llama_3(style: PromptStyle, turns: _Turns) -> str:
    messages = [("system", style.system), *((style.roles[side], text) for side, text in turns)]
    return "<|begin_of_text|>" + "".join(llama_3_message(*message) for message in messages)


def _cambrian(style: PromptStyle, turns: _Turns) -> str:
    messages = [("system", style.system), *((style.roles[side], text) for side, text in turns)]
    return "<|begin_of_text|>" + "".join(
        f"<|start_header_id|>{role}<|end_header_id|>{text}{style.separator}"
        for role, text in messages
        if text
    )


def _plain(style: PromptStyle, turns: _Turns) -> str:
    if any(text and side for side, text in turns):
        raise TypeError("plain has no separator after an answer")
    return "".join(text + style.separator for _, text in turns if text)


_JOIN = {
    "two": _two,
    "single": _single,
    "llama_2": _llama_2,
    "mpt": _mpt,
    "chatml": _chatml,
    "llama_3": _llama_3,
    "cambrian": _cambrian,
    "plain": _plain,
}


def generation_prompt(style: PromptStyle, texts: Sequence[str]) -> str:
    """Returns what the model goes on from: the turns, the last by the user, and an open answer."""
    if style.style in ("two", "single", "llama_2", "mpt", "plain"):
        return join_turns(style, [*texts, ""])
    opened = {
        "chatml": style.roles[1],
        "llama_3": "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "cambrian": "<|start_header_id|>assistant<|end_header_id|>",
    }
    return join_turns(style, texts) + opened[style.style]
