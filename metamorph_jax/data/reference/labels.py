"""The references' labels, computed as they compute them: by counting tokens of re-encoded texts.

Where the counts are off, labels are cut short, shifted, or the whole sample is masked; the golden
templates pin each such slip. Ours (`templates/`) knows what it supervises and needs no counts.

**Source:** llava.md section 1.6; metamorph.md section 2.3; the golden templates.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

from metamorph_jax.data.reference.encoding import IMAGE_TAG, ReferenceEncoder
from metamorph_jax.data.reference.prompts import PromptStyle, llama_3_message

IGNORE = -100
Count = Callable[[str], int]


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A sample before it is collated.

    Attributes:
        ids: -200 for an image.
        labels: -100 where nothing is learned.
        mismatch: counts did not add up, so that the reference masked the whole sample.
    """

    ids: list[int]
    labels: list[int]
    mismatch: bool = False


@dataclasses.dataclass(frozen=True)
class Round:
    """One stretch of a prompt: `masked` tokens that are not learned, then `learned` ones."""

    masked: int
    learned: int


def label_by_counts(
    ids: list[int], rounds: Iterator[Round], *, begin: int, pad: int, limit: int
) -> Labelled:
    """Walks through ids by counts; what is left over is masked, and so is all if counts are off.

    Args:
        ids: of the sample, cut at `limit` if the reference cuts here.
        rounds: counts, in order.
        begin: tokens before the first round.
        pad: id that the reference takes for padding when it counts what is there.
        limit: `model_max_length`.
    """
    labels = list(ids)
    labels[:begin] = [IGNORE] * begin
    position = begin
    for found in rounds:
        end = min(position + max(found.masked, 0), len(ids))
        labels[position:end] = [IGNORE] * max(end - position, 0)
        position += found.masked + found.learned
    labels[position:] = [IGNORE] * len(labels[position:])
    labels = labels[: len(ids)]
    present = sum(id_ != pad for id_ in ids)
    if position < limit and position != present:
        return Labelled(ids, [IGNORE] * len(ids), mismatch=True)
    return Labelled(ids, labels)


def rounds_of_answers(
    prompt: str, end: str, header: str, count: Count, later: int = 0
) -> Iterator[Round]:
    """Yields the rounds of v1 and llama_2: question and answer up to `end`.

    A round counts its own begin-of-text for the `end` that was cut off, and two less for what
    precedes the answer: begin-of-text, and the space that becomes part of the answer's first word.

    Args:
        prompt: of the whole conversation.
        end: end-of-text, as written.
        header: what precedes an answer; a round with more or fewer than one stops the walk.
        count: tokens of a text, begin-of-text included.
        later: added to both counts of all rounds but the first.
    """
    for number, text in enumerate(prompt.split(end)):
        parts = text.split(header)
        if text == "" or len(parts) != 2:
            return
        extra = later if number else 0
        masked = count(parts[0] + header) - 2 + extra
        yield Round(masked, count(text) + extra - masked)


def rounds_of_chatml(
    prompt: str,
    end: str,
    header: str,
    count: Count,
    *,
    first: int,
    counts_end: bool,
    begin: int,
    later: int,
) -> Iterator[Round]:
    """Yields the rounds of mpt and MetaMorph's llama3: (system,) question and answer.

    Args:
        prompt: of the whole conversation.
        end: of a turn.
        header: `end` and the answer's header.
        count: tokens of a text.
        first: turns of the first round; the others have two.
        counts_end: add the tokens of `end`, which was cut off.
        begin: taken from what precedes an answer: its begin-of-text.
        later: added to both counts of all rounds but the first.
    """
    turns = prompt.split(end)
    starts = [0, *range(first, len(turns) + 2, 2)]
    for number, (start, stop) in enumerate(itertools.pairwise(starts)):
        text = end.join(turns[start:stop])
        parts = text.split(header)
        if text == "" or len(parts) != 2:
            return
        extra = later if number else 0
        masked = count(parts[0] + header) - begin + extra
        whole = count(text) + (count(end) if counts_end else 0) + extra
        yield Round(masked, whole - masked)


def rounds_of_cambrian(prompt: str, end: str, count: Sequence[Count]) -> Iterator[Round]:
    """Yields the turns of Cambrian's llama_v3, taken for system, user, answer, user, ... in order.

    Args:
        prompt: of the whole conversation.
        end: of a turn; one token.
        count: tokens of system text, first question, and every other turn.
    """
    for number, text in enumerate(prompt.split(end)):
        if text == "":
            return
        whole = count[min(number, 2)](text) + 1
        is_answer = number >= 2 and number % 2 == 0
        masked = 3 if is_answer else whole  # an answer's header
        yield Round(masked, whole - masked)


def label_plain(encoder: ReferenceEncoder, caption: str) -> Labelled:
    """Labels an image and its caption; all tokens of the encoded tag are masked."""
    ids = encoder.with_images(IMAGE_TAG + caption)
    begin = len(encoder.with_images(IMAGE_TAG))
    return Labelled(ids, [IGNORE] * begin + ids[begin:])


def label_v0(
    encoder: ReferenceEncoder, ids: list[int], header: str, turns: Sequence[tuple[int, str]]
) -> Labelled:
    """Labels v0, where each block is counted with a begin-of-text that is not there.

    Args:
        encoder: of the texts.
        ids: of the sample.
        header: before the first block.
        turns: (side, block) in order.
    """
    labels = list(ids)
    position = len(encoder.with_images(header))
    labels[:position] = [IGNORE] * position
    for side, block in turns:
        count = len(encoder.with_images(block))
        if side == 0:
            masked = range(position + 2, min(position + count, len(ids)))
            for index in masked:
                labels[index] = IGNORE
        position += count
    return Labelled(ids, labels)


def label_messages(
    encoder: ReferenceEncoder,
    style: PromptStyle,
    messages: Sequence[tuple[str, str]],
    kept: frozenset[int],
    tag: str | None,
) -> Labelled:
    """Labels LLaVA-NeXT's qwen and llama3: message by message, with a temporary image token.

    Args:
        encoder: of the texts.
        style: of the template.
        messages: (role, text) in order, the system's first.
        kept: ids that are learned wherever they stand.
        tag: of an image, if the record has one.
    """
    temporary = encoder.tokenizer.vocab_size
    ids: list[int] = []
    labels: list[int] = []
    for number, (role, text) in enumerate(messages):
        if style.style == "llama_3":
            written = ("<|begin_of_text|>" if number == 0 else "") + llama_3_message(role, text)
        else:
            written = f"<|im_start|>{role}\n{text}{style.separator}"
        pieces = [encoder(piece, begin=False) for piece in written.split(tag or "\0")]
        new = list(pieces[0])
        for piece in pieces[1:]:
            new += [temporary, *piece]
        ids += new
        labels += new if role == "assistant" else [i if i in kept else IGNORE for i in new]
    return Labelled([-200 if id_ == temporary else id_ for id_ in ids], labels)
