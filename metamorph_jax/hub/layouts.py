"""How whole checkpoints spell the names of their parts: one list of prefixes per layout.

Every tensor has an *own name* within its part of our tree, whatever the checkpoint around it:

    language_model  those of `LlamaForCausalLM`: "model.norm.weight", "lm_head.weight"
    vision_tower    those of the tower without "vision_model.": "encoder.layers.0.mlp.fc1.weight"
    connector       "0.weight", "2.weight" of a torch Sequential; one bare Linear is "weight"
    vision_head     likewise
    image_newline   "vector"

A layout maps checkpoint names to (part, own name) and back; the tables of `parts.py` take over
from there. Nothing here looks at shapes.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

_MOST_LINEARS = 8  # of a connector or vision head with numbered layers


class Prefix(NamedTuple):
    """Names that begin with `theirs` belong to `part`, where `own` stands instead."""

    theirs: str
    part: str
    own: str


class OwnName(NamedTuple):
    """A tensor within its part."""

    part: str
    name: str


def _linears(theirs: str, part: str) -> tuple[Prefix, ...]:
    """Returns the prefixes of "linear_1.", "linear_2.", ... and of a single "linear."."""
    numbered = (Prefix(f"{theirs}linear_{i + 1}.", part, f"{2 * i}.") for i in range(_MOST_LINEARS))
    return (*numbered, Prefix(f"{theirs}linear.", part, ""))


_DECODER = (
    Prefix("model.", "language_model", "model."),
    Prefix("lm_head.", "language_model", "lm_head."),
)
_TOWER = (Prefix("vision_model.", "vision_tower", ""), Prefix("", "vision_tower", ""))

TEXT_SIDE = ("text_model.", "text_projection.", "visual_projection.", "logit_")  # of CLIP, SigLIP
_TOWER_BEGINNINGS = (
    "embeddings.",
    "encoder.",
    "pre_layrnorm.",
    "post_layernorm.",
    "head.",
    *TEXT_SIDE,
)

# Where several spellings have one meaning, the first is written and all are read.
LAYOUTS: dict[str, tuple[Prefix, ...]] = {
    # MetaMorph as we export it; also LLaVA as transformers >= 4.52 holds it in memory.
    "composite": (
        Prefix("model.language_model.", "language_model", "model."),
        Prefix("lm_head.", "language_model", "lm_head."),
        Prefix("model.vision_tower.", "vision_tower", ""),
        Prefix("model.vision_tower.vision_model.", "vision_tower", ""),
        *_linears("model.multi_modal_projector.", "connector"),
        *_linears("model.vision_head.", "vision_head"),
        Prefix("model.image_newline", "image_newline", "vector"),
    ),
    # LLaVA on the Hugging Face hub; transformers 5.23 writes the tower without "vision_model.".
    "llava": (
        Prefix("language_model.model.", "language_model", "model."),
        Prefix("language_model.lm_head.", "language_model", "lm_head."),
        Prefix("vision_tower.vision_model.", "vision_tower", ""),
        Prefix("vision_tower.", "vision_tower", ""),
        *_linears("multi_modal_projector.", "connector"),
        Prefix("image_newline", "image_newline", "vector"),
    ),
    # LLaVA and MetaMorph as their own training code saves them.
    "native": (
        Prefix("model.vision_tower.vision_tower.vision_model.", "vision_tower", ""),
        Prefix("model.vision_tower.vision_model.", "vision_tower", ""),
        Prefix("vision_tower.vision_tower.vision_model.", "vision_tower", ""),
        Prefix("vision_tower.vision_model.", "vision_tower", ""),
        Prefix("model.mm_projector.", "connector", ""),
        Prefix("mm_projector.", "connector", ""),
        Prefix("vision_head.", "vision_head", ""),
        Prefix("model.vision_head.", "vision_head", ""),
        Prefix("model.image_newline", "image_newline", "vector"),
        *_DECODER,
    ),
    # One part alone.
    "decoder": _DECODER,
    "tower": _TOWER,
}

# Stored by released models, used by none of them.
_DEAD = re.compile(r"(model\.)?(vision_proj|temperature_in|codebook)(\..*)?")


def to_own(layout: str, name: str) -> OwnName | None:
    """Returns part and own name of a checkpoint's tensor; None: no part has such names."""
    fitting = [prefix for prefix in LAYOUTS[layout] if name.startswith(prefix.theirs)]
    if not fitting:
        return None
    best = max(fitting, key=lambda prefix: len(prefix.theirs))
    return OwnName(best.part, best.own + name.removeprefix(best.theirs))


def to_theirs(layout: str, own: OwnName) -> str | None:
    """Returns the name that a tensor of ours has in a checkpoint; None: there is no name for it."""
    fitting = [
        prefix
        for prefix in LAYOUTS[layout]
        if prefix.part == own.part and own.name.startswith(prefix.own)
    ]
    if not fitting:
        return None
    best = max(fitting, key=lambda prefix: len(prefix.own))
    return best.theirs + own.name.removeprefix(best.own)


def is_dead(name: str) -> bool:
    """Returns whether a tensor is a leftover that its own model never reads."""
    return _DEAD.fullmatch(name) is not None


def find_layout(names: Iterable[str]) -> str | None:
    """Returns the layout whose prefixes know the names; None: no layout knows them all.

    Of several the first one in which every part of a layout of many parts occurs is meant: names
    of a bare decoder are also "native" names, but without a connector they are "decoder" names.
    """
    names = [name for name in names if not is_dead(name)]
    for layout in ("composite", "llava", "native"):
        owns = [to_own(layout, name) for name in names]
        if None not in owns and {"language_model", "connector"} <= {own.part for own in owns}:
            return layout
    for layout in ("decoder", "tower"):
        if names and all(_fits_alone(layout, name) for name in names):
            return layout
    return None


def _fits_alone(layout: str, name: str) -> bool:
    """Whether a name is one of a decoder alone, or of a tower with or without its text side."""
    known = _TOWER_BEGINNINGS if layout == "tower" else tuple(p.theirs for p in LAYOUTS[layout])
    return name.removeprefix("vision_model." if layout == "tower" else "").startswith(known)
