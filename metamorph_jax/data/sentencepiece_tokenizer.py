"""A `tokenizer.model`, read by SentencePiece itself, as the slow Llama tokenizer read it.

SentencePiece puts a space in front of what it encodes. The slow tokenizer of `transformers` did so
for every piece of text between two control tokens if its folder says `legacy`, and otherwise only
at the beginning; models were trained on the ids that came of it. Libraries of today differ in this,
so the model file is read directly. `tokenizer_base.py` says what all tokenizers offer.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from metamorph_jax.data.tokenizer_base import Tokenizer, find_special
from metamorph_jax.errors import UserError

_SPACE = "\u2581"  # how pieces spell a space


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model with added control tokens.

    Args:
        model: content of `tokenizer.model`.
        added: control tokens that the model itself does not have, with their ids.
        path: its folder.
        roles: `bos_token` and the like of `tokenizer_config.json`.
        legacy: each text between control tokens begins with a space of its own.
        adds_begin: `add_bos_token` of `tokenizer_config.json`.
        chat_template: of the folder.

    Raises:
        UserError: SentencePiece cannot read the model.

    **Source:** behaviour of `LlamaTokenizer` in transformers 4.45, by the golden tokens of
    tests/golden/llava.
    """

    def __init__(
        self,
        model: bytes,
        added: Mapping[str, int],
        path: str,
        roles: Mapping[str, str | None],
        *,
        legacy: bool,
        adds_begin: bool = True,
        chat_template: str | None = None,
    ):
        super().__init__()
        self._arguments = (model, dict(added), path, dict(roles), legacy, adds_begin, chat_template)
        self._inner = _load(model, path, dummy_prefix=legacy)
        inner, count = self._inner, self._inner.vocab_size()
        own = [id_ for id_ in range(count) if inner.is_control(id_) or inner.is_unknown(id_)]
        self.path, self.legacy = path, legacy
        self.names = {inner.id_to_piece(id_): id_ for id_ in own} | dict(added)
        self._strings = {id_: name for name, id_ in self.names.items()}
        self._unknown = inner.id_to_piece(inner.unk_id())
        self._num_unknown = len(inner.encode(self._unknown))
        self.roles = dict(roles)
        self.special = find_special(self.names, roles)
        has_bytes = any(inner.is_byte(id_) for id_ in range(min(count, 512)))
        # Without byte pieces an unknown character is the unknown token, and no content is lost.
        unknown = set() if has_bytes else {inner.unk_id()}
        self.control_ids = frozenset(self.names.values()) - unknown
        self.vocab_size = max([count - 1, *added.values()]) + 1
        self.adds_begin, self.chat_template = adds_begin, chat_template

    def _encode(self, text: str) -> list[int]:
        return [id_ for id_, _ in self.encode_run([text], at_start=True)]

    def encode_run(self, texts: Sequence[str], at_start: bool) -> list[tuple[int, int]]:
        """See `Tokenizer`. The texts are encoded as one; a token has the text of its last byte."""
        text = "".join(texts)
        if not text:
            return []
        ids, ends = self._pieces(text, at_start)
        if not self.control_ids.isdisjoint(ids):
            found = sorted(self.control_ids.intersection(ids))
            raise UserError(f"the tokenizer turns ordinary text into control ids {found}: {text!r}")
        borders = np.cumsum([len(part) for part in texts])
        # Position of the last character of each token; what stands for no character is the first's.
        last = np.maximum(np.array(ends) - 1, 0)
        owners = np.searchsorted(borders, last, side="right")
        return list(zip(ids, owners.tolist(), strict=True))

    def _pieces(self, text: str, at_start: bool) -> tuple[list[int], list[int]]:
        """Returns ids, and after how many characters of `text` each ends."""
        before = 0
        if not self.legacy:
            text = text.replace(_SPACE, " ")
            if at_start:
                text, before = _SPACE + text, 1
        skipped = 0
        if not self.legacy and text.startswith((_SPACE, " ")):
            # At the beginning the model would drop spaces; behind an unknown word it does not.
            text, skipped = self._unknown + text, self._num_unknown
            before += len(self._unknown)
        found = self._inner.encode(text, return_type="offset_mapping")
        ids = found["ids"][skipped:]
        # A character spelled in several bytes ends with the last of them: count it for all.
        ends = [max(end, begin + (end == begin)) for begin, end in found["offsets"][skipped:]]
        return ids, [max(end - before, 0) for end in ends]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; special tokens are written out."""
        text, piece, at_start = "", [], True
        for id_ in ids:
            if id_ in self._strings:
                text += self._words(piece, at_start) + self._strings[id_]
                piece, at_start = [], id_ == self.special.begin_of_text
            else:
                piece.append(id_)
        return text + self._words(piece, at_start)

    def _words(self, ids: list[int], at_start: bool) -> str:
        words = self._inner.decode(ids)  # legacy: without the space that was put in front
        return words.removeprefix(" ") if at_start and not self.legacy else words

    @property
    def _definition(self) -> bytes:
        model, added, _, roles, legacy, *_ = self._arguments
        return model + repr((sorted(added.items()), sorted(roles.items()), legacy)).encode()

    def __reduce__(self) -> Any:
        return _restore, self._arguments


def _restore(model, added, path, roles, legacy, adds_begin, chat_template):
    return SentencePieceTokenizer(
        model,
        added,
        path,
        roles,
        legacy=legacy,
        adds_begin=adds_begin,
        chat_template=chat_template,
    )


def _load(model: bytes, path: str, dummy_prefix: bool) -> Any:
    """Returns the processor, which puts a space in front of texts or does not."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    try:
        if not dummy_prefix:
            proto = sentencepiece_model_pb2.ModelProto.FromString(model)
            proto.normalizer_spec.add_dummy_prefix = False
            model = proto.SerializeToString()
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except Exception as error:  # RuntimeError of the library, DecodeError of protobuf
        raise UserError(f"{path}/tokenizer.model: not a SentencePiece model, {error}") from None
