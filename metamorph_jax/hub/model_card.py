"""README.md of an exported folder: what was trained from what, and how to load it."""

import json
import re
from pathlib import Path

from metamorph_jax.checkpoints.folders import CHECKPOINTS, folder_of
from metamorph_jax.checkpoints.metadata import CheckpointMeta
from metamorph_jax.checkpoints.selection import complete_steps
from metamorph_jax.checkpoints.store import read_meta_file
from metamorph_jax.config.loading import from_dict, to_text
from metamorph_jax.config.schema_run import RunConfig

CARD_FILE = "README.md"
_LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "USE_POLICY.md", "NOTICE")
_LICENCE_KEY = re.compile(r"^license(_name)?:\s*(.+)$", re.MULTILINE)

_METAMORPH = """\
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."  # this folder
options = {"trust_remote_code": True}  # its own classes, in the files *_metamorph.py
model = AutoModelForImageTextToText.from_pretrained(folder, **options)
processor = AutoProcessor.from_pretrained(folder, **options)
question = [{"role": "user", "content": [{"type": "text", "text": "What do you see?"}]}]
inputs = processor.apply_chat_template(
    question, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
answer = model.generate(**inputs, max_new_tokens=16)
print(processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
_LLAVA = "".join(
    line.replace(", **options", "")
    for line in _METAMORPH.splitlines(keepends=True)
    if not line.startswith("options")
)
_INTRODUCTIONS = {
    "MetaMorphForConditionalGeneration": (
        "Reads images and text, answers in text and in visual tokens (`generate_multimodal`), "
        "which a diffusion model paints. With metamorph_jax installed, "
        "`metamorph_jax.hub.auto.register()` replaces trusting the code in this folder."
    ),
    "LlavaForConditionalGeneration": "Reads images and text, answers in text.",
}


def loading_snippet(kind: str) -> str:
    """Returns the lines of Python that load a folder, run inside it.

    Args:
        kind: class of the model.
    """
    return _LLAVA if kind == "LlavaForConditionalGeneration" else _METAMORPH


def model_card(run: RunConfig, meta: CheckpointMeta, kind: str) -> str:
    """Returns the text of the card.

    Args:
        run: the recipe.
        meta: of the checkpoint.
        kind: class of the exported model.
    """
    versions = ", ".join(f"{name} {version}" for name, version in meta.versions.items())
    licences = "\n".join(f"- {line}" for line in base_licences(run))
    stages = ", ".join(stage.name for stage in run.stages) or "none (imported weights)"
    return f"""\
---
library_name: transformers
pipeline_tag: image-text-to-text
---

# {run.name}

{_INTRODUCTIONS[kind]}

```python
{loading_snippet(kind)}```

## Training

Stages: {stages}. This is step {meta.step:,}: {meta.stage_step:,} of {meta.stage_total_steps:,} of
{meta.stage!r}.
Data (fingerprint of its plan): {meta.data_fingerprint or "none"}.
Written by {versions}; "commit" is of metamorph_jax.

Weights it began with, and their licences, which hold for this model, too:

{licences or "- none: it began at random"}

## Recipe

```
{to_text(run)}
```
"""


def base_licences(run: RunConfig, seen: frozenset[Path] = frozenset()) -> list[str]:
    """Returns one line for each folder the weights came from, with the licence that it states.

    Args:
        run: the recipe; where a folder is a run of ours, those that it came from are meant.
        seen: runs that were looked at on the way: one that was imported into again names itself.
    """
    lines = []
    for folder in map(Path, run.model.init_from):
        earlier, place = _recipe_of(folder), folder.resolve()
        if earlier is None:
            lines.append(f"{folder}: {_licence(folder)}")
        elif place not in seen:
            lines += base_licences(earlier, seen | {place})
    return list(dict.fromkeys(lines))


def _recipe_of(folder: Path) -> RunConfig | None:
    """Returns the recipe of a folder that is a run of ours; None: it is not."""
    steps = complete_steps(folder / CHECKPOINTS)
    if not steps:
        return None
    meta = read_meta_file(folder_of(folder / CHECKPOINTS, steps[0]))
    return from_dict(json.loads(meta.recipe), RunConfig)


def _licence(folder: Path) -> str:
    """Returns what a folder says about its licence."""
    if not folder.is_dir():
        return "not here any more; look it up where it came from"
    card = folder / CARD_FILE
    text = card.read_text("utf-8", "replace")[:65536] if card.is_file() else ""
    stated = [value.strip().strip("\"'") for _, value in _LICENCE_KEY.findall(text)]
    files = [name for name in _LICENCE_FILES if (folder / name).is_file()]
    if not stated and not files:
        return "states none; look it up where it came from"
    return ", ".join(stated + [f"see its {name}" for name in files])
