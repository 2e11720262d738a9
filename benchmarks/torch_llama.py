"""Our decoder's weights in the classes of Hugging Face transformers, for the torch side."""

import jax
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from metamorph_jax.config import schema_model as ours
from metamorph_jax.hub import llama as hub
from metamorph_jax.hub.decoder_configs import llm_config_json
from metamorph_jax.typing import PyTree


def hf_config(llm: ours.LlamaConfig, attention: str = "sdpa") -> LlamaConfig:
    """Returns the configuration of the same decoder, without a cache."""
    values = llm_config_json(llm)
    return LlamaConfig(**values, attn_implementation=attention, use_cache=False)


def torch_llama(llm: ours.LlamaConfig, language_model: PyTree) -> LlamaForCausalLM:
    """Returns transformers' decoder with our weights, in float32, ready to train.

    Args:
        llm: of our decoder.
        language_model: its parameters.
    """
    weights = hub.to_hf(jax.device_get(language_model), llm)
    model = LlamaForCausalLM(hf_config(llm))
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
    model.load_state_dict(tensors, strict=True)
    return model.train()
