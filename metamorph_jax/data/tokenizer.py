"""Opens a local Hugging Face tokenizer folder; content never becomes a control id.

`encode_text` treats "<|eot_id|>" in a user's text as ten ordinary characters; control ids are
emitted only by `templates/`, by name. The module is also a command, which appends the two image
tokens to a folder that lacks them:

    python -m metamorph_jax.data.tokenizer --add_image_tokens SRC DST
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metamorph_jax.data.fast_tokenizer import FastTokenizer
from metamorph_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from metamorph_jax.data.tokenizer_base import IMAGE_TOKENS, SpecialTokens, Tokenizer
from metamorph_jax.errors import UserError, run_main

__all__ = ["SpecialTokens", "Tokenizer", "add_image_tokens", "load_tokenizer", "main"]

_FAST, _SENTENCEPIECE, _CONFIG = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
_ROLES = ("bos_token", "eos_token", "pad_token")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Returns the tokenizer of a local Hugging Face folder.

    Its `tokenizer.json` is read if it has one and that is no conversion of a SentencePiece model,
    otherwise its `tokenizer.model`: conversions differ in where they put spaces.

    Raises:
        UserError: the folder or the file is missing or damaged; lists what is there.
    """
    file = _definition_file(path)
    config = _read_config(file.parent)
    roles = {role: _content(config.get(role)) for role in _ROLES}
    chat_template = _chat_template(file.parent, config)
    if file.name == _FAST:
        tokenizer = FastTokenizer(_read_text(file), str(path), roles, chat_template)
        if not tokenizer.is_sentencepiece:
            return tokenizer
        if not (file.parent / _SENTENCEPIECE).is_file():
            raise UserError(
                f"{path}: {_FAST} is a conversion of a SentencePiece model, whose own file "
                f"{_SENTENCEPIECE} is needed beside it to get the ids that models were trained on; "
                "download it from where the folder came from"
            )
    return SentencePieceTokenizer(
        (file.parent / _SENTENCEPIECE).read_bytes(),
        _added_tokens(file.parent, config),
        str(path),
        roles,
        # What `transformers` takes a folder for that does not say.
        legacy=bool(config.get("legacy", True)),
        adds_begin=bool(config.get("add_bos_token", True)),
        chat_template=chat_template,
    )


def has_tokenizer(path: str | Path) -> bool:
    """Returns whether a folder holds what `load_tokenizer` reads."""
    return any((Path(path) / name).is_file() for name in (_FAST, _SENTENCEPIECE))


def _definition_file(path: str | Path) -> Path:
    """Returns the path of what defines the tokenizer of a folder."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(
            f"{path}: no such tokenizer folder; it is a Hugging Face model's folder with "
            "tokenizer.json (for the demo: python -m metamorph_jax.data.digits --out DIR)"
        )
    for name in (_FAST, _SENTENCEPIECE):
        if (folder / name).is_file():
            return folder / name
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12]) or "nothing"
    raise UserError(
        f"{path}: {_FAST} (or {_SENTENCEPIECE}) is missing (found {found}); with transformers, "
        "AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER) writes it"
    )


def _read_text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a tokenizer definition, {error}") from None


def _read_config(folder: Path) -> dict[str, Any]:
    """Returns `tokenizer_config.json`; nothing if there is none."""
    file = folder / _CONFIG
    if not file.is_file():
        return {}
    try:
        fields = json.loads(_read_text(file))
    except ValueError as error:
        raise UserError(f"{file}: not JSON, {error}") from None
    if not isinstance(fields, dict):
        raise UserError(f"{file}: expected one JSON object")
    return fields


def _content(token: Any) -> str | None:
    """Returns the string of a token, which folders write plainly or as an object."""
    return token.get("content") if isinstance(token, dict) else token


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    file, found = folder / "chat_template.jinja", config.get("chat_template")
    if file.is_file():
        return _read_text(file)
    if isinstance(found, list):  # several by name
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    return found


def _added_tokens(folder: Path, config: dict[str, Any]) -> dict[str, int]:
    """Returns the control tokens beside a SentencePiece model, wherever the folder lists them."""
    file = folder / "added_tokens.json"
    added = json.loads(_read_text(file)) if file.is_file() else {}
    listed = config.get("added_tokens_decoder", {})
    return added | {token["content"]: int(id_) for id_, token in listed.items()}


def add_image_tokens(source: str | Path, target: str | Path) -> dict[str, int]:
    """Copies a tokenizer folder and appends the image tokens; returns their ids.

    The ids follow the last one (128256 and 128257 for Llama 3.1). Only files of the tokenizer are
    copied, weights are not. The embedding tables need two more rows, which importing weights adds.

    Raises:
        UserError: `source` is no tokenizer folder or has the tokens, or `target` is not empty.
    """
    target, tokenizer = Path(target), load_tokenizer(source)
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target}: the folder is not empty; name a new one")
    if present := tokenizer.names.keys() & set(IMAGE_TOKENS):
        raise UserError(f"{source}: has {', '.join(sorted(present))} already; use it as it is")
    return copy_tokenizer(source, target, IMAGE_TOKENS)


def copy_tokenizer(
    source: str | Path, target: str | Path, new_tokens: Sequence[str] = ()
) -> dict[str, int]:
    """Copies the files of a tokenizer, with control tokens appended; returns the ids of these.

    Raises:
        UserError: `source` is no tokenizer folder.
    """
    first = load_tokenizer(source).vocab_size
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    new = [
        {"id": first + index, "content": content, **flags, "special": True}
        for index, content in enumerate(new_tokens)
    ]
    _copy_folder(Path(source), Path(target), new)
    return {token["content"]: token["id"] for token in new}


def _copy_folder(source: Path, target: Path, new: list[dict[str, Any]]) -> None:
    """Copies the tokenizer's files, with more added tokens in those that list them."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("special_tokens_map.json", "chat_template.jinja", _SENTENCEPIECE):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if (source / _FAST).is_file():
        definition = json.loads((source / _FAST).read_text("utf-8"))
        definition["added_tokens"] = [*(definition.get("added_tokens") or []), *new]
        _write_json(target / _FAST, definition)
    else:
        added = _added_tokens(source, _read_config(source))
        added |= {token["content"]: token["id"] for token in new}
        _write_json(target / "added_tokens.json", added)
    fields = _read_config(source)
    if fields:
        if "added_tokens_decoder" in fields:
            for token in new:
                entry = {key: value for key, value in token.items() if key != "id"}
                fields["added_tokens_decoder"][str(token["id"])] = entry
        _write_json(target / _CONFIG, fields)


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
