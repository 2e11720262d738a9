"""Opens a local Hugging Face tokenizer folder; content never becomes a control id.

`encode_text` treats "<|eot_id|>" in a user's text as ten ordinary characters; control ids are
emitted only by `templates/`, by name. `tokenizer_files.py` reads the files of the folder. The
module is also a command, which appends the two image tokens to a folder that lacks them:

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
from metamorph_jax.data.tokenizer_files import (
    ADDED,
    CONFIG,
    FAST,
    SENTENCEPIECE,
    SPECIAL_MAP,
    TEMPLATE,
    find_definition,
    read_added_tokens,
    read_chat_template,
    read_config,
    read_object,
    read_roles,
    read_text,
)
from metamorph_jax.errors import UserError, run_main

__all__ = ["SpecialTokens", "Tokenizer", "add_image_tokens", "load_tokenizer", "main"]


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Returns the tokenizer of a local Hugging Face folder.

    Its `tokenizer.json` is read if it has one and that is no conversion of a SentencePiece model,
    otherwise its `tokenizer.model`: conversions differ in where they put spaces.

    Raises:
        UserError: the folder or the file is missing or damaged, or a link that leads out of the
            folder; lists what is there.
    """
    file = find_definition(path)
    config = read_config(file.parent)
    roles = read_roles(file.parent, config)
    chat_template = read_chat_template(file.parent, config)
    if file.name == FAST:
        tokenizer = FastTokenizer(read_text(file), str(path), roles, chat_template)
        if not tokenizer.is_sentencepiece:
            return tokenizer
        if not (file.parent / SENTENCEPIECE).is_file():
            raise UserError(
                f"{path}: {FAST} is a conversion of a SentencePiece model, whose own file "
                f"{SENTENCEPIECE} is needed beside it to get the ids that models were trained on; "
                "download it from where the folder came from"
            )
    return SentencePieceTokenizer(
        (file.parent / SENTENCEPIECE).read_bytes(),
        read_added_tokens(file.parent, config),
        str(path),
        roles,
        # What `transformers` takes a folder for that does not say.
        legacy=bool(config.get("legacy", True)),
        adds_begin=bool(config.get("add_bos_token", True)),
        chat_template=chat_template,
    )


def has_tokenizer(path: str | Path) -> bool:
    """Returns whether a folder holds what `load_tokenizer` reads."""
    return any((Path(path) / name).is_file() for name in (FAST, SENTENCEPIECE))


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
    config, special_map = read_config(source), read_object(source / SPECIAL_MAP)
    if (source / FAST).is_file():
        definition = read_object(source / FAST)
        definition["added_tokens"] = [*(definition.get("added_tokens") or []), *new]
        files = {FAST: definition}
    else:
        added = {token["content"]: token["id"] for token in new}
        files = {ADDED: read_added_tokens(source, config) | added}
    if "added_tokens_decoder" in config:
        for token in new:
            entry = {key: value for key, value in token.items() if key != "id"}
            config["added_tokens_decoder"][str(token["id"])] = entry
    target.mkdir(parents=True, exist_ok=True)
    for name, fields in (files | {CONFIG: config, SPECIAL_MAP: special_map}).items():
        if fields or name == ADDED:
            _write_json(target / name, fields)
    for name in (TEMPLATE, SENTENCEPIECE):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


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
