"""What the published code makes of a conversation, slips included, to compare ours with.

    encoding   its tokenizer: a text that spells a token becomes it
    prompts    its prompts as strings: moved image tags, joined turns
    labels     its labels, by counting tokens
    collation  its batches

`reference_sample` is the whole road. It reproduces the golden samples of tests/golden/llava exactly
and serves to tell where ours differs; for training, use `templates/`.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from metamorph_jax.data.reference.collation import collate
from metamorph_jax.data.reference.encoding import ReferenceEncoder, reference_encoder
from metamorph_jax.data.reference.labels import (
    Labelled,
    label_by_counts,
    label_messages,
    label_plain,
    label_v0,
    rounds_of_answers,
    rounds_of_cambrian,
    rounds_of_chatml,
)
from metamorph_jax.data.reference.prompts import (
    STYLES,
    TAG,
    PromptStyle,
    generation_prompt,
    join_turns,
    place_images,
)
from metamorph_jax.data.tokenizer import Tokenizer

__all__ = ["Labelled", "Protocol", "collate", "reference_prompt_ids", "reference_sample"]

Protocol = Literal["llava-1.1", "next", "cambrian", "metamorph"]
_Turns = Sequence[tuple[str, str]]


def reference_sample(
    turns: Sequence[tuple[str, str]],
    protocol: Protocol,
    template: str,
    tokenizer: Tokenizer,
    *,
    has_image: bool,
    wrap: tuple[str, str] | None = None,
    limit: int = 2048,
    pad: int | None = None,
) -> Labelled:
    """Returns ids and labels of a conversation as the reference computes them.

    Args:
        turns: (`human` or `gpt`, text with image tags), as in a record.
        protocol: whose code.
        template: its name there.
        tokenizer: of the model.
        has_image: whether the record has an image; without one, tags are mostly left alone.
        wrap: what stands around each image tag.
        limit: `model_max_length`.
        pad: id that it pads with; None: what the trainers set.

    Raises:
        AssertionError: where the reference stops: turns do not alternate, or `plain` is given
            anything but an image and a caption.
    """
    style, encoder = (
        STYLES[template],
        ReferenceEncoder(tokenizer, STYLES[template].style != "cambrian"),
    )
    if has_image:
        turns = [(speaker, place_images(text, protocol, wrap)) for speaker, text in turns]
    if style.style == "plain":
        assert len(turns) == 2 and TAG in turns[0][1]
        return label_plain(encoder, turns[1][1] + style.separator)
    if turns[0][0] != "human":
        turns = turns[1:]
    if style.style in ("chatml", "llama_3"):
        return _messages(style, encoder, turns, has_image)
    if template == "v0":
        return _v0(style, encoder, turns, has_image)
    for number, (speaker, _) in enumerate(turns):
        assert speaker == ("human", "gpt")[number % 2], "0"  # it names the batch's sample
    prompt = join_turns(style, [text for _, text in turns])
    with_images = has_image or (protocol == "llava-1.1" and style.style == "mpt")
    ids = encoder.with_images(prompt) if with_images else encoder(prompt)[:limit]
    encode = encoder.with_images if with_images else encoder
    pad = _pad(tokenizer, protocol) if pad is None else pad
    return _by_counts(style, encoder, protocol, prompt, ids, encode, pad=pad, limit=limit)


def _by_counts(
    style: PromptStyle,
    encoder: ReferenceEncoder,
    protocol: Protocol,
    prompt: str,
    ids: list[int],
    encode: Callable[[str], list[int]],
    *,
    pad: int,
    limit: int,
) -> Labelled:
    """Picks the walk of a template."""

    def count(text: str) -> int:
        return len(encode(text))

    is_next, begin = protocol == "next", 1
    if style.style == "two":
        later = -1 if is_next and not encoder.legacy else 0
        rounds = rounds_of_answers(prompt, style.end, f" {style.roles[1]}: ", count, later)
    elif style.style == "llama_2":
        rounds = rounds_of_answers(prompt, style.end, "[/INST] ", count)
    elif style.style == "cambrian":
        begin, plainly = 0, lambda text: len(encoder(text))
        rounds = rounds_of_cambrian(prompt, style.separator, (plainly, count, plainly))
    else:
        header = style.separator + style.roles[1]
        begin = int(protocol != "llava-1.1")
        turns_at_first = 3 if style.system.startswith("<|im_start|>") else 2
        options = {"first": turns_at_first, "counts_end": not begin, "begin": begin}
        later = int(is_next and encoder.legacy)
        rounds = rounds_of_chatml(prompt, style.separator, header, count, later=later, **options)
    return label_by_counts(ids, rounds, begin=begin, pad=pad, limit=limit)


def _messages(
    style: PromptStyle, encoder: ReferenceEncoder, turns: _Turns, has_image: bool
) -> Labelled:
    names = {"human": "user", "gpt": "assistant"}
    system = style.system.split("\n", 1)[1] if style.style == "chatml" else style.system
    messages = [("system", system), *((names[speaker], text) for speaker, text in turns)]
    if style.style == "llama_3":
        kept = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
        # The double newline is looked up as a token's raw text, which byte-level tokens have not.
        ids = {encoder.tokenizer.names[name] for name in kept}
    else:
        kept = ("<|im_start|>", "<|im_end|>")
        ids = {encoder.tokenizer.names[name] for name in kept} | {198}
    tag = TAG if has_image else None
    return label_messages(encoder, style, messages, frozenset(ids), tag)


def _v0(style: PromptStyle, encoder: ReferenceEncoder, turns: _Turns, has_image: bool) -> Labelled:
    header = f"{style.system}\n\n"
    names = {"human": (0, style.roles[0]), "gpt": (1, style.roles[1])}
    blocks = [(names[speaker][0], f"### {names[speaker][1]}: {text}\n") for speaker, text in turns]
    prompt = header + "".join(block for _, block in blocks) + "### "
    ids = encoder.with_images(prompt) if has_image else encoder(prompt)
    return label_v0(encoder, ids, header, blocks)


def _pad(tokenizer: Tokenizer, protocol: Protocol) -> int:
    """Returns the id that the trainers pad with."""
    name = "<|reserved_special_token_0|>"
    if protocol == "cambrian" and name in tokenizer.names:
        return tokenizer.names[name]
    return tokenizer.special.pad


def reference_prompt_ids(turns: Sequence[str], template: str, tokenizer: Tokenizer) -> list[int]:
    """Returns the ids of a prompt for generation.

    Args:
        turns: texts of user and assistant in turn, the last by the user.
        template: the reference's name of it.
        tokenizer: of the model.
    """
    style = STYLES[template]
    encoder = reference_encoder(tokenizer, style.style != "cambrian")
    return encoder.with_images(generation_prompt(style, turns))
