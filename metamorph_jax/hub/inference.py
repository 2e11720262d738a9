"""Which model a set of folders is, and whether a recipe's model is that one.

Sizes come from the config.json files, never from a folder's name.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from metamorph_jax.config.schema_model import LlamaConfig, ModelConfig, VisionConfig
from metamorph_jax.errors import UserError
from metamorph_jax.hub.configs import (
    arithmetic,
    read_llm_config,
    read_model_config,
    read_vision_config,
    vision_config_json,
)
from metamorph_jax.hub.folder import CONFIG_FILE, HubFolder
from metamorph_jax.hub.parts import part_tables
from metamorph_jax.hub.runs import OpenRun

_WHOLE = ("composite", "llava", "native")
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_LAST_LAYER = -1  # of SigLIP, which MetaMorph reads


def infer_model(folders: Sequence[HubFolder], num_ids: int) -> ModelConfig:
    """Returns the model that folders are or, of a decoder and a tower, could become.

    A decoder and a tower become a MetaMorph: 64 interpolated visual tokens an image, and a new
    connector and vision head.

    Args:
        folders: a whole model's (with a tower's beside it where its own config.json only names the
            tower), or a decoder's and a tower's.
        num_ids: of the tokenizer, tokens that are new to the model included.

    Raises:
        UserError: the folders are neither, or a config.json is of something that we do not have.
    """
    whole = [folder for folder in folders if folder.layout in _WHOLE]
    by_layout = {folder.layout: folder for folder in folders}
    if len(whole) == 1:
        tower = by_layout.get("tower")
        model = read_model_config(
            whole[0].config,
            tower.config if tower else None,
            str(whole[0].path / CONFIG_FILE),
            str(tower.path / CONFIG_FILE) if tower else "",
        )
    elif {"decoder", "tower"} <= by_layout.keys() and len(folders) == 2:
        llm = _llm(by_layout["decoder"])
        model = ModelConfig(
            llm=dataclasses.replace(llm, vocab_size=max(llm.vocab_size, num_ids)),
            vision=_vision(by_layout["tower"]),
        )
    else:
        kinds = ", ".join(f"{folder.path} ({folder.layout})" for folder in folders)
        raise UserError(
            f"{kinds}: expected one whole model, or one decoder and one vision tower; name the "
            "other folder too, or give --config with the model that it is to become"
        )
    stored = {spec.dtype for folder in folders for spec in folder.tensors.specs.values()}
    # What is stored must fit exactly: float16 and float32 do not fit into bfloat16.
    is_bfloat = all(dtype == _BFLOAT16 for dtype in stored if dtype.kind not in "biu")
    is_short = all(dtype.itemsize <= 2 for dtype in stored if dtype.kind not in "biu")
    return dataclasses.replace(
        model,
        dtype="bfloat16" if is_short else "float32",
        param_dtype="bfloat16" if is_bfloat else "float32",
    )


def check_same_model(config: ModelConfig, folders: Sequence[HubFolder | OpenRun]) -> None:
    """Compares the sizes and constants of a recipe's model with those that folders state.

    Only what the weights were trained with: which layer is read and how many visual tokens are made
    is the recipe's own affair.

    Raises:
        UserError: listing every key that differs, with both values, and the parts that a whole
            model states and does not hold.
    """
    hub = [folder for folder in folders if isinstance(folder, HubFolder)]
    towers = [folder.config for folder in hub if folder.layout == "tower"]
    own = vision_config_json(config.vision) | {"num_hidden_layers": config.vision.num_layers}
    tower = towers[0] if towers else own
    problems = []
    for folder in folders:
        where = str(folder.path / CONFIG_FILE)
        if isinstance(folder, OpenRun):
            where = f"the run {folder.path}"
            problems += _differences("llm", config.llm, folder.model.llm, where, vocabulary=True)
            problems += _differences("vision", config.vision, folder.model.vision, where)
        elif folder.layout == "decoder":
            problems += _differences("llm", config.llm, _llm(folder), where)
        elif folder.layout == "tower":
            problems += _differences("vision", config.vision, _vision(folder), where)
        else:
            model = read_model_config(folder.config, tower, where)
            problems += _differences("llm", config.llm, model.llm, where)
            problems += _differences("vision", config.vision, model.vision, where)
            problems += _promised(folder, model, where)
    if problems:
        raise UserError(
            "the recipe's model is not that of the weights it begins with:\n  - "
            + "\n  - ".join(problems)
            + "\nset these keys to the folder's values, or name another folder"
        )


def _promised(folder: HubFolder, model: ModelConfig, where: str) -> list[str]:
    """Returns one line for each part that a whole model has by its config.json, but not here.

    Only the tower of a model that its own training code saved may be elsewhere.
    """
    elsewhere = {"vision_tower"} if folder.layout == "native" else set()
    missing = sorted(part_tables(model).keys() - folder.parts.keys() - elsewhere)
    return [f"{where} states a {part}, but no tensor of it is in {folder.path}" for part in missing]


def _llm(folder: HubFolder) -> LlamaConfig:
    return read_llm_config(folder.config, str(folder.path / CONFIG_FILE))


def _vision(folder: HubFolder) -> VisionConfig:
    where = str(folder.path / CONFIG_FILE)
    family = read_vision_config(folder.config, _LAST_LAYER, where).family
    # LLaVA reads the layer before CLIP's last; MetaMorph, SigLIP's last.
    return read_vision_config(folder.config, -2 if family == "clip" else _LAST_LAYER, where)


def _differences(
    part: str,
    ours: LlamaConfig | VisionConfig,
    theirs: LlamaConfig | VisionConfig,
    where: str,
    vocabulary: bool = False,
) -> list[str]:
    """Returns one line for each value that would compute something else."""
    mine, stored = _flat(arithmetic(ours)), _flat(arithmetic(theirs))
    if vocabulary:  # a run of ours has its new tokens already
        mine["vocab_size"], stored["vocab_size"] = ours.vocab_size, theirs.vocab_size
    return [
        f"model.{part}.{key} is {mine.get(key)!r} in the recipe, {stored.get(key)!r} in {where}"
        for key in sorted(mine.keys() | stored.keys())
        if mine.get(key) != stored.get(key)
    ]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values with those of nested dataclasses as "key.inner"."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if dataclasses.is_dataclass(value):
            flat |= {f"{key}.{inner}": item for inner, item in vars(value).items()}
        else:
            flat[key] = value
    return flat
