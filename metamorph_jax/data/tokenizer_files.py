"""The files of a tokenizer folder: what is read of them, and what is refused.

They come from strangers. A link is followed inside the folder, or into the files of the Hugging
Face cache that it lies in, and nowhere else: whoever copies a tokenizer copies no other file of the
machine with it. `tokenizer.py` makes a tokenizer of what is read here.
"""

import json
import os
from pathlib import Path
from typing import Any

from metamorph_jax.errors import UserError

FAST, SENTENCEPIECE, CONFIG = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
SPECIAL_MAP, ADDED, TEMPLATE = "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"
_ROLES = ("bos_token", "eos_token", "pad_token")


def find_definition(path: str | Path) -> Path:
    """Returns the path of what defines the tokenizer of a folder.

    Raises:
        UserError: there is no such folder or nothing in it, or one of its files is a link that
            leads out of it.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(
            f"{path}: no such tokenizer folder; it is a Hugging Face model's folder with "
            "tokenizer.json (for the demo: python -m metamorph_jax.data.digits --out DIR)"
        )
    _check_links(folder)
    for name in (FAST, SENTENCEPIECE):
        if (folder / name).is_file():
            return folder / name
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12]) or "nothing"
    raise UserError(
        f"{path}: {FAST} (or {SENTENCEPIECE}) is missing (found {found}); with transformers, "
        "AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER) writes it"
    )


def _check_links(folder: Path) -> None:
    """Raises a UserError if a file of the tokenizer lies elsewhere.

    The cache keeps `snapshots/REVISION/FILE` as a link to `blobs/HASH` beside `snapshots`.
    """
    real = Path(os.path.realpath(folder))
    places = [real, *(up.parent / "blobs" for up in real.parents if up.name == "snapshots")]
    for name in (FAST, SENTENCEPIECE, CONFIG, SPECIAL_MAP, ADDED, TEMPLATE):
        target = Path(os.path.realpath(folder / name))
        if not any(target.is_relative_to(place) for place in places):
            raise UserError(
                f"{folder / name} is a link to {target}, outside of its folder; such links are not "
                "followed. If it is the right file, put a copy in the link's place"
            )


def read_text(file: Path) -> str:
    """Returns the text of a file.

    Raises:
        UserError: it is no UTF-8.
    """
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a tokenizer definition, {error}") from None


def read_object(file: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; an empty one if there is no file.

    Raises:
        UserError: it holds something else, or text that no file can hold.
    """
    if not file.is_file():
        return {}
    try:
        fields = json.loads(read_text(file))
        json.dumps(fields, ensure_ascii=False).encode()  # fails for half a surrogate pair
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON, {error}") from None
    if not isinstance(fields, dict):
        raise UserError(f"{file}: expected one JSON object")
    return fields


def read_config(folder: Path) -> dict[str, Any]:
    """Returns `tokenizer_config.json`; nothing if there is none.

    Raises:
        UserError: it is damaged.
    """
    fields = read_object(folder / CONFIG)
    listed = fields.get("added_tokens_decoder", {})
    if not isinstance(listed, dict) or not all(
        id_.isdecimal() and len(id_) < 10 and _is_token(token) for id_, token in listed.items()
    ):
        example = '{"32000": {"content": "<image>"}}'
        raise UserError(f'{folder / CONFIG}: "added_tokens_decoder" should be like {example}')
    return fields


def read_roles(folder: Path, config: dict[str, Any]) -> dict[str, str | None]:
    """Returns the strings of `bos_token` and the like, which folders write plainly or as objects.

    Raises:
        UserError: one is neither.
    """
    roles = {}
    for role in _ROLES:
        token = config.get(role)
        if not (token is None or isinstance(token, str) or _is_token(token)):
            raise UserError(f"{folder / CONFIG}: {role} should be a string, not {token!r}")
        roles[role] = token["content"] if isinstance(token, dict) else token
    return roles


def read_chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """Returns the folder's own template; None: it has none.

    Raises:
        UserError: it is no text, and no list of texts by name.
    """
    if (folder / TEMPLATE).is_file():
        return read_text(folder / TEMPLATE)
    found = config.get("chat_template")
    if isinstance(found, list):
        named = [entry if isinstance(entry, dict) else {} for entry in found]
        named = [(entry.get("name"), entry.get("template")) for entry in named]
        if all(isinstance(text, str) for pair in named for text in pair):
            return dict(named).get("default")
    elif found is None or isinstance(found, str):
        return found
    raise UserError(
        f'{folder / CONFIG}: "chat_template" should be a text or a list of '
        '{"name": "default", "template": TEXT}'
    )


def read_added_tokens(folder: Path, config: dict[str, Any]) -> dict[str, int]:
    """Returns the control tokens beside a SentencePiece model, wherever the folder lists them.

    Raises:
        UserError: a file that lists them is damaged.
    """
    added = read_object(folder / ADDED)
    if not all(type(id_) is int and 0 <= id_ < 10**9 for id_ in added.values()):
        raise UserError(f'{folder / ADDED}: expected ids by token, like {{"<image>": 32000}}')
    listed = config.get("added_tokens_decoder", {})
    return added | {token["content"]: int(id_) for id_, token in listed.items()}


def _is_token(token: Any) -> bool:
    return isinstance(token, dict) and isinstance(token.get("content"), str)
