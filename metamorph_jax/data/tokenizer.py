"""A local Hugging Face tokenizer folder, wrapped so that content cannot become a control id.

`encode_text` treats "<|eot_id|>" in a user's text as ten ordinary characters; control ids are
emitted only by `templates.py`, by number. The module is also a command, which appends the two image
tokens to a folder that lacks them:

    python -m metamorph_jax.data.tokenizer --add_image_tokens SRC DST
"""

import argparse
import dataclasses
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from metamorph_jax.errors import UserError, run_main

IMAGE_TOKENS = ("<image_start>", "<image_end>")
_ADD_IMAGE_TOKENS = "python -m metamorph_jax.data.tokenizer --add_image_tokens"
_NAMES = {
    "begin_of_text": "<|begin_of_text|>",
    "end_of_text": "<|end_of_text|>",
    "start_header": "<|start_header_id|>",
    "end_header": "<|end_header_id|>",
    "end_of_turn": "<|eot_id|>",
    "image_start": IMAGE_TOKENS[0],
    "image_end": IMAGE_TOKENS[1],
    "pad": "<|end_of_text|>",  # as the reference pads
}
_CACHE_TEXT_LENGTH, _CACHE_SIZE = 256, 65536


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Control ids of the Llama-3 family plus the two image tokens."""

    begin_of_text: int
    end_of_text: int
    start_header: int
    end_header: int
    end_of_turn: int
    image_start: int
    image_end: int
    pad: int


class Tokenizer:
    """Texts to ids and back.

    Attributes:
        special: ids that only templates emit.
        control_ids: every id that content can never yield: `special` and all other tokens that the
            folder marks as special.
        vocab_size: number of ids, special ones included.
    """

    def __init__(self, inner: tokenizers.Tokenizer, special: SpecialTokens):
        added = inner.get_added_tokens_decoder()
        control = {id_: token.content for id_, token in added.items() if token.special}
        control |= {id_: inner.id_to_token(id_) for id_ in dataclasses.asdict(special).values()}
        inner.encode_special_tokens = True  # special tokens in a text are split like any text
        self._inner = inner
        self._cache: dict[str, list[int]] = {}
        self._control_pattern = re.compile("|".join(map(re.escape, control.values())))
        self.special = special
        self.control_ids = frozenset(control)
        self.vocab_size = max(inner.get_vocab(with_added_tokens=True).values()) + 1

    def encode_text(self, text: str) -> list[int]:
        """Returns the ids of a text: no begin-of-text, and never one of `control_ids`."""
        ids = self._cache.get(text)
        if ids is None:
            ids = self._encode(text)
            if len(text) <= _CACHE_TEXT_LENGTH and len(self._cache) < _CACHE_SIZE:
                self._cache[text] = ids
        return list(ids)

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

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; special tokens are written out."""
        return self._inner.decode(list(ids), skip_special_tokens=False)

    @property
    def fingerprint(self) -> str:
        """A hash of the definition."""
        import hashlib

        return hashlib.sha256(self._inner.to_str().encode()).hexdigest()

    def __reduce__(self) -> Any:
        # Worker processes get the definition, not the cache.
        return _restore, (self._inner.to_str(), self.special)


def _restore(definition: str, special: SpecialTokens) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(definition), special)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Returns the tokenizer of a local Hugging Face folder (its `tokenizer.json`).

    Raises:
        UserError: the folder, the file or a needed token is missing; lists what is there.
    """
    file = _definition_file(path)
    try:
        inner = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for whatever it cannot read
        raise UserError(f"{file}: not a tokenizer definition, {error}") from None
    ids = {field: inner.token_to_id(name) for field, name in _NAMES.items()}
    missing = dict.fromkeys(_NAMES[field] for field, id_ in ids.items() if id_ is None)
    if missing:
        added = sorted(inner.get_added_tokens_decoder().items())
        found = ", ".join(token.content for _, token in added[:12]) or "none"
        if missing.keys() <= set(IMAGE_TOKENS):
            advice = f"add them with: {_ADD_IMAGE_TOKENS} {path} NEW_FOLDER"
        else:
            advice = "use the tokenizer of a Llama-3 instruct model (or the one that digits writes)"
        raise UserError(
            f"{file}: no token {', '.join(missing)} (special tokens found: {found}); {advice}"
        )
    return Tokenizer(inner, SpecialTokens(**ids))


def _definition_file(path: str | Path) -> Path:
    """Returns the path of the `tokenizer.json` of a folder."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(
            f"{path}: no such tokenizer folder; it is a Hugging Face model's folder with "
            "tokenizer.json (for the demo: python -m metamorph_jax.data.digits --out DIR)"
        )
    file = folder / "tokenizer.json"
    if not file.is_file():
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12]) or "nothing"
        raise UserError(
            f"{path}: tokenizer.json is missing (found {found}); with transformers, "
            "AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER) writes it"
        )
    return file


def add_image_tokens(source: str | Path, target: str | Path) -> dict[str, int]:
    """Copies a tokenizer folder and appends the image tokens; returns their ids.

    The ids follow the last one (128256 and 128257 for Llama 3.1). Only files of the tokenizer are
    copied, weights are not. The embedding tables need two more rows, which importing weights adds.

    Raises:
        UserError: `source` is no tokenizer folder or has the tokens, or `target` is not empty.
    """
    file, target = _definition_file(source), Path(target)
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target}: the folder is not empty; name a new one")
    try:
        vocabulary = tokenizers.Tokenizer.from_file(str(file)).get_vocab()
    except Exception as error:  # see load_tokenizer
        raise UserError(f"{file}: not a tokenizer definition, {error}") from None
    if present := vocabulary.keys() & set(IMAGE_TOKENS):
        raise UserError(f"{source}: has {', '.join(sorted(present))} already; use it as it is")
    first = max(vocabulary.values()) + 1
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    new = [
        {"id": first + index, "content": content, **flags, "special": True}
        for index, content in enumerate(IMAGE_TOKENS)
    ]
    _copy_folder(Path(source), target, new)
    return {token["content"]: token["id"] for token in new}


def _copy_folder(source: Path, target: Path, new: list[dict[str, Any]]) -> None:
    """Copies the tokenizer's files, with more added tokens in those that list them."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("special_tokens_map.json", "chat_template.jinja"):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    definition = json.loads((source / "tokenizer.json").read_text("utf-8"))
    definition["added_tokens"] = [*(definition.get("added_tokens") or []), *new]
    _write_json(target / "tokenizer.json", definition)
    config = source / "tokenizer_config.json"
    if config.is_file():
        fields = json.loads(config.read_text("utf-8"))
        if "added_tokens_decoder" in fields:
            for token in new:
                entry = {key: value for key, value in token.items() if key != "id"}
                fields["added_tokens_decoder"][str(token["id"])] = entry
        _write_json(target / "tokenizer_config.json", fields)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", "utf-8")


def main(arguments: Sequence[str]) -> None:
    """The command line: see the module docstring.

    Raises:
        UserError: see `add_image_tokens`.
    """
    parser = argparse.ArgumentParser(prog="python -m metamorph_jax.data.tokenizer")
    parser.add_argument(
        "--add_image_tokens",
        nargs=2,
        required=True,
        metavar=("SRC", "DST"),
        help="copy tokenizer folder SRC to DST with <image_start> and <image_end> appended",
    )
    options = parser.parse_args(arguments)
    for content, id_ in add_image_tokens(*options.add_image_tokens).items():
        print(f"{content} = {id_}")


if __name__ == "__main__":
    run_main(main)
