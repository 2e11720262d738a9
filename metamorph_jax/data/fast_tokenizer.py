"""A `tokenizer.json`, read by the `tokenizers` library.

Byte-level BPE keeps no memory of what stood before: a text has the same ids wherever it stands,
apart from merges with its neighbours. `tokenizer_base.py` says what all tokenizers offer.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from metamorph_jax.data.tokenizer_base import Tokenizer, find_special
from metamorph_jax.errors import UserError

_KNOWN = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<image_start>", "<image_end>", "<im_start>", "<im_end>"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
)


class FastTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library.

    Args:
        definition: content of `tokenizer.json`.
        path: its folder.
        roles: `bos_token` and the like of `tokenizer_config.json`.
        chat_template: of the folder.

    Attributes:
        definition: content of `tokenizer.json`.
        is_sentencepiece: it spells spaces as SentencePiece does and puts one in front of texts.

    Raises:
        UserError: the library cannot read it.
    """

    def __init__(
        self,
        definition: str,
        path: str,
        roles: Mapping[str, str | None],
        chat_template: str | None = None,
    ):
        super().__init__()
        try:
            inner = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the library raises bare Exception for what it cannot read
            raise UserError(f"{path}/tokenizer.json: not a tokenizer definition, {error}") from None
        added = inner.get_added_tokens_decoder()
        # A folder may forget to mark as special what templates write.
        control = {t.content: i for i, t in added.items() if t.special or t.content in _KNOWN}
        self._inner, self._arguments = inner, (definition, path, dict(roles), chat_template)
        self.path, self.names, self.definition = path, control, definition
        self.roles = dict(roles)
        self.special = find_special(control, roles)
        self.adds_begin = _added_in_front(inner) == [self.special.begin_of_text]
        self.control_ids = frozenset(control.values())
        self.vocab_size = max(inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.chat_template = chat_template
        self.is_sentencepiece = any(t.startswith("\u2581") for t in inner.encode("a").tokens)
        self._control_pattern = re.compile("|".join(map(re.escape, control)) or r"(?!)")
        inner.encode_special_tokens = True  # special tokens in a text are split like any text

    def _encode(self, text: str) -> list[int]:
        ids = self._inner.encode(text, add_special_tokens=False).ids
        if self.control_ids.isdisjoint(ids):
            return ids
        # The folder does not mark a token as special, or the vocabulary can spell it from ordinary
        # pieces: cut every such spelling after its first character, then no piece holds one.
        cuts = [match.start() + 1 for match in self._control_pattern.finditer(text)]
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        encoded = [self._inner.encode(piece, add_special_tokens=False).ids for piece in pieces]
        ids = [id_ for piece in encoded for id_ in piece]
        if not self.control_ids.isdisjoint(ids):
            found = sorted(self.control_ids.intersection(ids))
            raise UserError(f"the tokenizer turns ordinary text into control ids {found}: {text!r}")
        return ids

    def encode_run(self, texts: Sequence[str], at_start: bool) -> list[tuple[int, int]]:
        """See `Tokenizer`. Each text is encoded by itself: their borders are wanted borders."""
        return [(id_, index) for index, text in enumerate(texts) for id_ in self.encode_text(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; special tokens are written out."""
        return self._inner.decode(list(ids), skip_special_tokens=False)

    @property
    def _definition(self) -> bytes:
        return self._inner.to_str().encode()

    def __reduce__(self) -> Any:
        return FastTokenizer, self._arguments  # worker processes get the definition, not the cache


def _added_in_front(inner: tokenizers.Tokenizer) -> list[int]:
    return inner.encode("", add_special_tokens=True).ids
