"""A real model whose greedy answers are written by hand.

Attention and MLPs add nothing, so the hidden state is the embedding of the last input, and the
output head is a table: last input -> ids in order of preference.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.typing import PyTree
from tests.model_helpers import random_params
from tests.tiny import tiny_model

VISUAL = -1  # as a last input: any visual token


def scripted_config(vocab_size: int, num_visual_tokens: int = 4, **llm) -> ModelConfig:
    """Returns a tiny model wide enough for one direction per id and one for visual tokens."""
    config = tiny_model()
    changes = {"vocab_size": vocab_size, "embed_dim": -(-(vocab_size + 1) // 16) * 16, **llm}
    visual_tokens = dataclasses.replace(config.visual_tokens, num_tokens=num_visual_tokens)
    return dataclasses.replace(
        config, llm=dataclasses.replace(config.llm, **changes), visual_tokens=visual_tokens
    )


def scripted_params(config: ModelConfig, script: Mapping[int, Sequence[int]]) -> PyTree:
    """Returns parameters (stacked, as trained ones are) that follow `script`.

    Args:
        config: from `scripted_config`.
        script: for each last input, the ids that follow, the most wanted first.
    """
    params = random_params(config)
    width = config.llm.embed_dim
    llm = params["language_model"]
    for kernel in (llm["blocks"]["attention"]["out"], llm["blocks"]["mlp"]["down"]):
        kernel["kernel"][:] = 0
    llm["final_norm"]["scale"][:] = 1
    table, head = llm["embed_tokens"]["embedding"], llm["lm_head"]["kernel"]
    table[:] = np.eye(*table.shape)
    last = params["connector"][f"layers_{config.num_connector_layers - 1}"]
    last["kernel"][:], last["bias"][:] = 0, np.eye(width)[VISUAL]
    head[:] = 0
    for state, wanted in script.items():
        for rank, id_ in enumerate(wanted):
            head[state, id_] = len(wanted) - rank
    return params
