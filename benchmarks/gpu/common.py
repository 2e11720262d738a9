"""What the benchmarks of this folder run: the recipe, the backends, and how results are printed.

Everything that a faster backend or another memory scheme would change is in `recipe_values` and
`packed_attention`. Any key can be set on the command line, as for a run: `--config.model...=VALUE`.
"""

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# `common` sorts before the modules of the folder above, which its importers need, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")  # read when jax starts

import jax

from metamorph_jax.config.build import build_dataclass
from metamorph_jax.config.overrides import apply_overrides
from metamorph_jax.config.presets import llm_preset, vision_preset
from metamorph_jax.config.schema_run import RunConfig
from metamorph_jax.models.attend import attend

TOKENS_PER_IMAGE = 64
# Bytes a second of device memory. Source: makers' data sheets.


def run_config(quick: bool, overrides: Mapping[str, str]) -> RunConfig:
    """Returns the recipe: MetaMorph 8B, both stages; if quick, a tiny model in float32.

    Args:
        quick: for a machine without accelerator.
        overrides: text values by dotted path, as `split_arguments` returns them.

    Raises:
        UserError: an override names nothing, or values do not fit together.
    """
    values = recipe_values(quick)
    problems = apply_overrides(values, dict(overrides))
    return build_dataclass(RunConfig, values, problems=problems)


def recipe_values(quick: bool) -> dict[str, Any]:
    """Returns the recipe before overrides.

    In bfloat16 throughout (parameters, gradients, both moments): 8 bytes a parameter, as the torch
    side has them.
    """
    small = {"num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 32, "embed_dim": 64}
    small |= {"mlp_dim": 128, "vocab_size": 512, "vocab_multiple": 64}
    llm = llm_preset("llama31_8b", **({**small, "remat": "none"} if quick else {}))
    dtype = "float32" if quick else "bfloat16"
    length = 256 if quick else 4096
    stage = {
        "data": {
            "sources": [{"path": "none.jsonl"}],
            "max_seq_len": length,
            "max_images": 4 if quick else 32,
        },
        "optimizer": {"learning_rate": 1e-5},
        "total_steps": 1_000_000,
        "global_batch_size": 2,
    }
    return {
        "name": "bench",
        "tokenizer": {"path": "none"},
        "model": {
            "llm": llm,
            "vision": vision_preset("digits" if quick else "siglip_so400m_14_384"),
            "visual_tokens": {"num_tokens": TOKENS_PER_IMAGE},
            "dtype": dtype,
            "param_dtype": dtype,
        },
        "stages": [
            {"name": "adapter", "trained": ["connector"], "loss": {"visual_weight": 0.0}} | stage,
            {"name": "vpit", "trained": ["connector", "language_model", "vision_head"]} | stage,
        ],
    }


def packed_attention() -> Callable[..., jax.Array]:
    """Returns (query, key, value, segment_ids) -> result, as the decoder attends in training."""
    return functools.partial(attend, "flash" if jax.default_backend() == "gpu" else "chunked")


def report(results: Mapping[str, Any], file: Path | None) -> None:
    """Prints results as a table and as one line of JSON, and writes that if a file is given."""
    print()
    for name, value in results.items():
        print(f"{name:52s} {f'{value:,.4g}' if isinstance(value, float) else value}")
    line = json.dumps(dict(results))
    print(f"\njson {line}")
    if file is not None:
        file.write_text(line + "\n", encoding="utf-8")


def goal(value: float | None, least: float, quick: bool) -> str:
    """Returns what to say of a goal; nothing on a machine where it says nothing."""
    if quick or value is None:
        return f">= {least:g} (not measured here)"
    return f">= {least:g}: {'reached' if value >= least else 'NOT reached'}"
