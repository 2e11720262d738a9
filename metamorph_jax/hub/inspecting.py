"""What a folder is, in lines for a terminal: `python -m metamorph_jax.convert inspect DIR`."""

import math
from pathlib import Path

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.data.tokenizer import load_tokenizer
from metamorph_jax.data.tokenizer_files import FAST, SENTENCEPIECE
from metamorph_jax.errors import UserError
from metamorph_jax.hub.configs import (
    find_preset,
    read_llm_config,
    read_model_config,
    read_vision_config,
)
from metamorph_jax.hub.folder import CONFIG_FILE, HubFolder, open_folder
from metamorph_jax.hub.llama import table as decoder_table
from metamorph_jax.hub.param_source import part_sources
from metamorph_jax.hub.parts import TOWERS, part_tables
from metamorph_jax.hub.table import Table

_LAYOUTS = {
    "composite": "a whole model, named as MetaMorph's export and as LLaVA in memory",
    "llava": "a whole model, named as LLaVA on the Hugging Face hub",
    "native": "a whole model, named as LLaVA's and MetaMorph's own training code does",
    "decoder": "a decoder",
    "tower": "a vision tower",
}


def inspect_folder(path: Path, tower: Path | None = None) -> tuple[list[str], bool]:
    """Returns lines about a folder, and whether it can be imported.

    Args:
        path: of the folder.
        tower: folder of the tower that the model's own config.json only names.

    Raises:
        UserError: it is no folder of weights, or of a family that is not known.
    """
    folder = open_folder(path)
    specs = folder.tensors.specs.values()
    total = sum(math.prod(spec.shape) for spec in specs)
    dtypes = ", ".join(sorted({str(spec.dtype) for spec in specs}))
    lines = [
        f"{path}: {_LAYOUTS[folder.layout]}",
        f"  config.json    model_type {folder.config.get('model_type')!r}",
        f"  tensors        {len(specs):,} with {total:,} numbers ({dtypes})",
    ]
    lines += [f"  never used     {name}" for name in folder.dead]
    try:
        lines += _describe_parts(folder, None if tower is None else open_folder(tower))
    except UserError as error:
        return [*lines, *(f"  problem        {line}" for line in str(error).splitlines())], False
    return [*lines, f"  tokenizer      {_describe_tokenizer(path)}"], True


def _describe_parts(folder: HubFolder, tower: HubFolder | None) -> list[str]:
    """Returns a line for each part, after checking all of its names and shapes."""
    where = str(folder.path / CONFIG_FILE)
    if folder.layout == "decoder":
        llm = read_llm_config(folder.config, where)
        tables, sizes = {"language_model": decoder_table(llm)}, {"language_model": llm}
    elif folder.layout == "tower":
        vision = read_vision_config(folder.config, -1, where)
        tables = {"vision_tower": TOWERS[vision.family].table(vision)}
        sizes = {"vision_tower": vision}
    else:
        model = read_model_config(folder.config, tower and tower.config, where)
        tables, sizes = part_tables(model), {"language_model": model.llm}
        sizes["vision_tower"] = model.vision
    lines = []
    for part, table in tables.items():
        if part not in folder.parts:
            lines.append(f"  {part:14} missing: it is in another folder, or begins at random")
            continue
        lines.append(f"  {part:14} {_count(folder, part, table):,} parameters used")
        if part in sizes:
            lines[-1] += f", preset {find_preset(sizes[part]) or 'none of these sizes'}"
    return lines


def _count(folder: HubFolder, part: str, table: Table) -> int:
    """Returns how many numbers of a part are used."""
    names = folder.parts[part]
    part_sources(table, folder.tensors, names, "float32", f"{folder.path}: {part}")
    used = (folder.tensors.specs[names[own]] for own in table.names())
    return sum(math.prod(spec.shape) for spec in used)


def _describe_tokenizer(path: Path) -> str:
    if not any((path / name).is_file() for name in (FAST, SENTENCEPIECE)):
        return "none in this folder"
    try:
        tokenizer = load_tokenizer(path)
    except UserError as error:
        return f"cannot be used: {error}"
    special = tokenizer.special
    has = "has" if special.image_start is not None else "lacks"
    return f"{tokenizer.vocab_size:,} ids, {has} image tokens"


def describe_model(model: ModelConfig) -> str:
    """Returns one line about a model that was made out of folders."""
    llm, vision = find_preset(model.llm) or "decoder", find_preset(model.vision) or "tower"
    head = "no vision head" if model.vision_head == "none" else f"vision head {model.vision_head}"
    return (
        f"{llm} ({model.llm.vocab_size:,} tokens) + {vision} ({model.visual_tokens.num_tokens} "
        f"visual tokens an image), connector {model.connector}, {head}, {model.param_dtype}"
    )
