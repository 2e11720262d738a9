"""What every tokenizer offers, whichever library reads its files.

`fast_tokenizer.py` reads `tokenizer.json`, `sentencepiece_tokenizer.py` reads `tokenizer.model`;
`tokenizer.py` opens the right one. None lets a text become a control id: those are written by
templates alone, by name.
"""

import abc
import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence

from metamorph_jax.errors import UserError

IMAGE_TOKENS = ("<image_start>", "<image_end>")
_LLAVA_IMAGE_TOKENS = ("<im_start>", "<im_end>")
BEGIN_OF_TEXT = ("<|begin_of_text|>", "<s>", "<bos>")
END_OF_TEXT = ("<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>")
END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "</s>")
_CACHE_TEXT_LENGTH, _CACHE_SIZE = 256, 65536


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Control ids by what they are for; None: the tokenizer has no such token.

    Attributes:
        begin_of_text: opens a sequence.
        end_of_text: ends one.
        end_of_turn: ends what one speaker says; a template may use another (`stop_ids`).
        pad: fills up; the reference pads with `<|end_of_text|>`.
        image_start: announces an image.
        image_end: follows an image.
    """

    begin_of_text: int | None
    end_of_text: int | None
    end_of_turn: int | None
    pad: int | None
    image_start: int | None
    image_end: int | None


def find_special(names: Mapping[str, int], roles: Mapping[str, str | None]) -> SpecialTokens:
    """Returns which token serves for what.

    Args:
        roles: what the folder says about `bos_token`, `eos_token`, `pad_token`.
        names: ids of all control tokens.
        roles: what the folder says about `bos_token`, `eos_token`, `pad_token`; may be empty.
    """

    def find(role: str | None, candidates: Sequence[str]) -> int | None:
        named = roles.get(role) if role else None
        for name in (named, *candidates):
            if name in names:
                return names[name]
        return None

    # An instruct model's eos_token often ends turns, and the text ends with another token.
    end_of_text = find(None, END_OF_TEXT) if roles.get("eos_token") in END_OF_TURN[:3] else None
    if end_of_text is None:
        end_of_text = find("eos_token", END_OF_TEXT)
    return SpecialTokens(
        begin_of_text=find("bos_token", BEGIN_OF_TEXT),
        end_of_text=end_of_text,
        end_of_turn=find(None, END_OF_TURN),
        pad=find("pad_token", END_OF_TEXT),
        image_start=find(None, (IMAGE_TOKENS[0], _LLAVA_IMAGE_TOKENS[0])),
        image_end=find(None, (IMAGE_TOKENS[1], _LLAVA_IMAGE_TOKENS[1])),
    )


class Tokenizer(abc.ABC):
    """Texts to ids and back.

    Attributes:
        path: its folder, for messages.
        special: ids that only templates emit, by what they are for.
        roles: what the folder says about `bos_token`, `eos_token`, `pad_token`.
        names: ids of all control tokens by their string.
        control_ids: every id that content can never yield.
        vocab_size: number of ids, special ones included.
        adds_begin: whether `transformers` puts begin-of-text in front of each text.
        chat_template: the folder's own, in jinja; None: it has none.
    """

    path: str
    special: SpecialTokens
    roles: Mapping[str, str | None]
    names: Mapping[str, int]
    control_ids: frozenset[int]
    vocab_size: int
    adds_begin: bool
    chat_template: str | None

    def __init__(self) -> None:
        self._cache: dict[str, list[int]] = {}

    def encode_text(self, text: str) -> list[int]:
        """Returns the ids of a text: no begin-of-text, and never one of `control_ids`."""
        ids = self._cache.get(text)
        if ids is None:
            ids = self._encode(text)
            if len(text) <= _CACHE_TEXT_LENGTH and len(self._cache) < _CACHE_SIZE:
                self._cache[text] = ids
        return list(ids)

    @abc.abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Returns the ids of a text that nothing precedes."""

    @abc.abstractmethod
    def encode_run(self, texts: Sequence[str], at_start: bool) -> list[tuple[int, int]]:
        """Returns (id, index of the text it belongs to) of texts that follow one another.

        Args:
            texts: which the tokenizer may join, where it joins words at all.
            at_start: nothing but begin-of-text or an image stands before them.
        """

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; special tokens are written out."""

    def control_id(self, name: str, user: str) -> int:
        """Returns the id of a control token.

        Args:
            name: as the tokenizer spells it.
            user: who asks, for the message.

        Raises:
            UserError: the tokenizer has no such token; names `user` and lists what there is.
        """
        if name in self.names:
            return self.names[name]
        found = ", ".join(list(self.names)[:12]) or "none"
        raise UserError(
            f"{self.path}: {user} needs the token {name}, which this tokenizer lacks (its control "
            f"tokens: {found}); {self._advice(name)}"
        )

    def image_token_ids(self, user: str) -> tuple[int, int]:
        """Returns the ids of image-start and image-end.

        Raises:
            UserError: the tokenizer has none; names `user`, who asks, and the command that adds
                them.
        """
        found = (self.special.image_start, self.special.image_end)
        if None in found:
            self.control_id(IMAGE_TOKENS[found.index(None)], user)
        return found

    def _advice(self, name: str) -> str:
        if name.startswith(("<im_", "<image_")):
            return (
                "add image tokens with: python -m metamorph_jax.data.tokenizer --add_image_tokens "
                f"{self.path} NEW_FOLDER"
            )
        return "set tokenizer.template to one that fits it, or tokenizer.path to the right folder"

    @property
    @abc.abstractmethod
    def _definition(self) -> bytes:
        """Everything that decides ids."""

    @property
    def fingerprint(self) -> str:
        """A hash that is equal exactly when all ids are."""
        parts = (self._definition, repr((self.adds_begin, self.chat_template)).encode())
        return hashlib.sha256(b"\0".join(parts)).hexdigest()
