"""Hugging Face Llama, Mistral, Qwen2 <-> our `language_model` parameters.

Rotary halves need no permutation: our convention is theirs (`ops/rope.py`).
"""

from collections.abc import Mapping

import numpy as np

from metamorph_jax.config.schema_model import LlamaConfig
from metamorph_jax.hub.table import Row, Table, read_tensors, write_tensors
from metamorph_jax.typing import PyTree

_BLOCK = "model.layers.{layer}."
_ROWS = (
    Row("embed_tokens/embedding", "model.embed_tokens.weight", "V D -> V D"),
    Row("blocks/attention_norm/scale", _BLOCK + "input_layernorm.weight", "D -> D"),
    Row("blocks/attention/query/kernel", _BLOCK + "self_attn.q_proj.weight", "(N H) D -> D N H"),
    Row("blocks/attention/key/kernel", _BLOCK + "self_attn.k_proj.weight", "(K H) D -> D K H"),
    Row("blocks/attention/value/kernel", _BLOCK + "self_attn.v_proj.weight", "(K H) D -> D K H"),
    Row("blocks/attention/out/kernel", _BLOCK + "self_attn.o_proj.weight", "D (N H) -> N H D"),
    Row("blocks/mlp_norm/scale", _BLOCK + "post_attention_layernorm.weight", "D -> D"),
    Row("blocks/mlp/gate/kernel", _BLOCK + "mlp.gate_proj.weight", "F D -> D F"),
    Row("blocks/mlp/up/kernel", _BLOCK + "mlp.up_proj.weight", "F D -> D F"),
    Row("blocks/mlp/down/kernel", _BLOCK + "mlp.down_proj.weight", "D F -> F D"),
    Row("final_norm/scale", "model.norm.weight", "D -> D"),
)
_QKV_BIASES = (
    Row("blocks/attention/query/bias", _BLOCK + "self_attn.q_proj.bias", "(N H) -> N H"),
    Row("blocks/attention/key/bias", _BLOCK + "self_attn.k_proj.bias", "(K H) -> K H"),
    Row("blocks/attention/value/bias", _BLOCK + "self_attn.v_proj.bias", "(K H) -> K H"),
)
_HEAD = Row("lm_head/kernel", "lm_head.weight", "V D -> D V")


def table(config: LlamaConfig) -> Table:
    """Returns the mapping table; a tied model has no head of its own, and ignores a stored copy."""
    tied = config.tie_embeddings
    sizes = {
        "V": config.vocab_size,
        "D": config.embed_dim,
        "F": config.mlp_dim,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
    }
    rows = _ROWS + (_QKV_BIASES if config.qkv_bias else ())
    return Table(
        rows=rows if tied else (*rows, _HEAD),
        sizes=sizes,
        num_layers=config.num_layers,
        # Old checkpoints store the rotary frequencies, which follow from the configuration.
        ignored=(r".*rotary_emb\.inv_freq", *(("lm_head\\.weight",) if tied else ())),
        padded_vocab_size=config.padded_vocab_size,
    )


def from_hf(tensors: Mapping[str, np.ndarray], config: LlamaConfig) -> PyTree:
    """Returns the `language_model` parameters, tables padded with zero rows.

    Args:
        tensors: of `LlamaForCausalLM` (or Mistral's, Qwen2's), by name.
        config: of the decoder; `vocab_size` is that of the tensors.

    Raises:
        UserError: A name is missing or unknown, or a shape is not that of `config`.
    """
    return read_tensors(table(config), tensors, "Llama checkpoint")


def to_hf(params: PyTree, config: LlamaConfig) -> dict[str, np.ndarray]:
    """Returns the tensors of `LlamaForCausalLM` by name, without padding.

    Args:
        params: of `language_model`.
        config: of the decoder.
    """
    return write_tensors(table(config), params)
