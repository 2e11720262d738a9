"""Every template by name."""

import dataclasses
from typing import Any

from metamorph_jax.config.schema_run import TokenizerConfig
from metamorph_jax.data.templates import system_texts
from metamorph_jax.data.templates.jinja import JinjaTemplate
from metamorph_jax.data.templates.segments import BEGIN, END
from metamorph_jax.data.templates.template import Template

_LLAMA_3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_CHATML = ("<|im_start|>", "<|im_end|>")


def _llama_3_turn(role: str, line_breaks: str) -> tuple[str, str]:
    return f"<|start_header_id|>{role}<|end_header_id|>{line_breaks}", "<|eot_id|>"


def _llama_3(line_breaks: str) -> dict[str, Any]:
    """Returns what the Llama-3 templates share, but for the line breaks after a header."""
    header, end = _llama_3_turn("assistant", line_breaks)
    return {
        "user": _llama_3_turn("user", line_breaks),
        "answer": (header, "", end),
        "controls": _LLAMA_3,
        "stop": ("<|eot_id|>",),
    }


# Two begin-of-text tokens: one written by the reference's template, one by its tokenizer.
# Source: golden case G of tests/golden/metamorph; metamorph.md sections 1.7 and 2.3.
METAMORPH_LLAMA3 = Template(
    name="metamorph_llama3",
    begin="<|begin_of_text|><|begin_of_text|>",
    image_tokens=True,
    **_llama_3("\n"),
)

# Source: the published Llama-3 prompt format.
LLAMA3 = Template(
    name="llama3",
    begin="<|begin_of_text|>",
    system=_llama_3_turn("system", "\n\n"),
    strip=True,
    image_tokens=True,
    **_llama_3("\n\n"),
)

# Source: llava_llama_3 of LLaVA-NeXT, which also learns every header token.
NEXT_LLAMA3 = dataclasses.replace(
    LLAMA3,
    name="next_llama3",
    system_text=system_texts.LLAVA_LLAMA_2,
    image_place="front_if_behind",
    image_tokens=False,
    supervised_header=True,
    always_supervised=_LLAMA_3,
)

# Source: llama_v3 of Cambrian-1: no line break after a header.
CAMBRIAN_LLAMA3 = Template(
    name="cambrian_llama3",
    begin="<|begin_of_text|>",
    system=_llama_3_turn("system", ""),
    system_text=system_texts.CAMBRIAN,
    image_place="front",
    **_llama_3(""),
)

# Source: v1 = vicuna_v1 of LLaVA 1.5.
V1 = Template(
    name="v1",
    system=("", " "),
    system_text=system_texts.VICUNA,
    user=("USER: ", " "),
    answer=("ASSISTANT:", " ", END),
    image_place="front",
)

# Source: the v0 format that LLaVA trained on; its marker of a turn is plain text.
V0 = Template(
    name="v0",
    system=("", "\n\n"),
    system_text=system_texts.LLAVA_HUMAN,
    user=("### Human: ", "\n"),
    answer=("### Assistant:", " ", "\n"),
    end="### ",
    signal="###",
    image_place="front",
)

# Source: llava_llama_2 of LLaVA.
LLAMA_2 = Template(
    name="llama_2",
    system=("<<SYS>>\n", "\n<</SYS>>\n\n"),
    system_text=system_texts.LLAVA_LLAMA_2,
    system_in_question=True,
    user=("[INST] ", " [/INST]"),
    between=BEGIN,
    answer=("", " ", f" {END}"),
    image_place="front",
)

# Source: mistral_instruct of LLaVA-NeXT.
MISTRAL_INSTRUCT = dataclasses.replace(
    LLAMA_2,
    name="mistral_instruct",
    system_text=None,
    between="",
    image_place="front_if_behind",
)

# Source: mpt of LLaVA: no line break after <|im_end|>.
MPT = Template(
    name="mpt",
    system=("<|im_start|>system\n", "<|im_end|>"),
    system_text=system_texts.MPT,
    user=("<|im_start|>user\n", "<|im_end|>"),
    answer=("<|im_start|>assistant\n", "", "<|im_end|>"),
    controls=_CHATML,
    stop=("<|im_end|>",),
    image_place="front",
)

# Source: qwen_1_5 of LLaVA-NeXT, which also learns every marker and line break.
QWEN = Template(
    name="qwen",
    begin="",
    system=("<|im_start|>system\n", "<|im_end|>\n"),
    system_text=system_texts.QWEN,
    user=("<|im_start|>user\n", "<|im_end|>\n"),
    answer=("<|im_start|>assistant\n", "", "<|im_end|>\n"),
    controls=_CHATML,
    stop=("<|im_end|>",),
    image_place="front_if_behind",
    supervised_header=True,
    always_supervised=(*_CHATML, "\n"),
)

# Source: plain of LLaVA: an image and its caption, for the first stage.
PLAIN = Template(
    name="plain",
    user=("", ""),
    answer=("", "", "\n"),
    questions="drop",
)

TEMPLATES: dict[str, Template | JinjaTemplate] = {
    "metamorph_llama3": METAMORPH_LLAMA3,
    "llama3": LLAMA3,
    "plain": PLAIN,
    "v0": V0,
    "v1": V1,
    "llava_v1": dataclasses.replace(V1, name="llava_v1", system_text=system_texts.LLAVA_HUMAN),
    "llama_2": LLAMA_2,
    "mpt": MPT,
    "chatml_direct": dataclasses.replace(
        MPT, name="chatml_direct", system_text=system_texts.CHATML_DIRECT
    ),
    "mistral_instruct": MISTRAL_INSTRUCT,
    "cambrian_llama3": CAMBRIAN_LLAMA3,
    "qwen": QWEN,
    "next_llama3": NEXT_LLAMA3,
    "jinja": JinjaTemplate(),
}


def choose_template(config: TokenizerConfig) -> Template | JinjaTemplate:
    """Returns the template that a recipe names, with or without image tokens as it says."""
    template = TEMPLATES[config.template]
    if config.image_tokens is None:
        return template
    return dataclasses.replace(template, image_tokens=config.image_tokens)
