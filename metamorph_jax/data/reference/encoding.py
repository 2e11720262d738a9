"""Texts to ids as the reference's tokenizers gave them: a text that spells a token becomes it."""

import functools
import re

import tokenizers

from metamorph_jax.data.fast_tokenizer import FastTokenizer
from metamorph_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from metamorph_jax.data.tokenizer import Tokenizer

IMAGE_ID, IMAGE_TAG = -200, "<image>"


class ReferenceEncoder:
    """Calls of a `transformers` 4.45 tokenizer with `use_fast=False` for Llama.

    Args:
        tokenizer: ours, of the same folder.
        drops_begin: of texts after an image, the begin-of-text is taken away.
    """

    def __init__(self, tokenizer: Tokenizer, drops_begin: bool = True):
        self._drops_begin = drops_begin
        self.tokenizer = tokenizer
        self.legacy = isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.legacy
        self._whole: tokenizers.Tokenizer | None = None
        if isinstance(tokenizer, FastTokenizer):
            self._whole = tokenizers.Tokenizer.from_str(tokenizer.definition)
        names = sorted(tokenizer.names, key=len, reverse=True)
        self._names = re.compile("(" + "|".join(map(re.escape, names)) + ")")

    def __call__(self, text: str, begin: bool = True) -> list[int]:
        """Returns the ids of a text, after begin-of-text where the tokenizer puts one."""
        if self._whole is not None:
            return self._whole.encode(text, add_special_tokens=begin).ids
        tokenizer = self.tokenizer
        ids = [tokenizer.special.begin_of_text] if begin and tokenizer.adds_begin else []
        for number, piece in enumerate(self._names.split(text)):
            if number % 2:
                ids.append(tokenizer.names[piece])
            else:
                ids += [id_ for id_, _ in tokenizer.encode_run([piece], at_start=number == 0)]
        return ids

    def with_images(self, text: str) -> list[int]:
        """Returns the ids of the texts between image tags, each encoded alone, joined by -200."""
        pieces = [self(piece) for piece in text.split(IMAGE_TAG)]
        # Only the first piece keeps its begin-of-text; without any there is none to take away.
        first = pieces[0][:1] if pieces[0] else []
        found = first == [self.tokenizer.special.begin_of_text]
        skip = int(self._drops_begin and found)
        ids = list(pieces[0])
        for piece in pieces[1:]:
            ids += [IMAGE_ID, *piece[skip:]]
        return ids


# Compiling a large vocabulary takes a second.
reference_encoder = functools.lru_cache(maxsize=8)(ReferenceEncoder)
