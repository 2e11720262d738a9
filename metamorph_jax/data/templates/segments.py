"""What a template makes of a conversation: control tokens, words and images, in order.

Nothing here is text yet to be searched: what may become a control token is a `Control` from the
beginning. `rendering.py` turns segments into an `Example`.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator

from metamorph_jax.data.media import Media

# Names of control tokens that every tokenizer spells in its own way.
BEGIN_IF_ADDED = "{begin}"  # begin-of-text, where the tokenizer itself puts it in front of texts
BEGIN = "{bos}"
END = "{eos}"
IMAGE_START = "{image_start}"
IMAGE_END = "{image_end}"


@dataclasses.dataclass(frozen=True)
class Control:
    """A control token, by the tokenizer's spelling or one of the names above."""

    name: str
    supervised: bool = False


@dataclasses.dataclass(frozen=True)
class Words:
    """Text, which never becomes a control token.

    Attributes:
        apart: what the model goes on from ends here, so byte-level tokens do not span this border.
    """

    text: str
    supervised: bool = False
    apart: bool = False


@dataclasses.dataclass(frozen=True)
class ImageSlot:
    """Where the visual tokens of an image go; supervised: they are to be predicted."""

    media: Media
    supervised: bool = False


Segment = Control | Words | ImageSlot


@functools.lru_cache(maxsize=256)
def split_markup(markup: str, controls: tuple[str, ...]) -> tuple[tuple[bool, str], ...]:
    """Returns (is control, string) of the pieces of a template's own text."""
    names = (*controls, BEGIN_IF_ADDED, BEGIN, END)
    pattern = "(" + "|".join(map(re.escape, sorted(names, key=len, reverse=True))) + ")"
    pieces = re.split(pattern, markup)
    return tuple((bool(n % 2), piece) for n, piece in enumerate(pieces) if piece)


def markup_segments(
    markup: str, controls: tuple[str, ...], supervised: bool = False, apart: bool = False
) -> Iterator[Segment]:
    """Yields the segments of a template's own text, in which control tokens are spelled out."""
    for is_control, piece in split_markup(markup, controls):
        if is_control:
            yield Control(piece, supervised)
        else:
            yield Words(piece, supervised, apart)
