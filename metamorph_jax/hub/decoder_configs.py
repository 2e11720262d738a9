"""A decoder's `config.json` <-> `LlamaConfig`: Llama (Vicuna too), Mistral, Qwen2 (2.5 too).

Nothing is read from a file's name. Whole models are in `configs.py`; weights in `llama.py`.
"""

import sys
from collections.abc import Mapping
from typing import Any

from metamorph_jax.config.schema_model import LlamaConfig, RopeScaling
from metamorph_jax.hub.config_values import Values, checked

_LONGEST = 2**31 - 1
_MOST_LAYERS, _MOST_TOKENS = 1024, 2**24
_BIG_VOCABULARY = 8192

# What a file may leave out. Source: HF transformers, `configuration_*.py`; a test compares them.
_OPTIONAL = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _OPTIONAL | {"max_position_embeddings": 2048},
    "mistral": _OPTIONAL
    | {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": _OPTIONAL
    | {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
}
# Only a section within a larger file leaves these out; alone, a file without them is damaged.
_SIZES = {"vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32}
_SIZES |= {"num_attention_heads": 32}
NESTED: dict[str, dict[str, Any]] = {
    "llama": FAMILIES["llama"] | _SIZES | {"intermediate_size": 11008},
    "mistral": FAMILIES["mistral"] | _SIZES | {"intermediate_size": 14336},
    "qwen2": FAMILIES["qwen2"] | _SIZES | {"vocab_size": 151936, "intermediate_size": 22016},
}

_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_ROPE_TYPES = {"default": "none", "linear": "linear", "llama3": "llama3"}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_LAYER_TYPES = ("full_attention", "sliding_attention")


def read_llm_config(config: Mapping[str, Any], where: str = "config.json") -> LlamaConfig:
    """Returns the decoder that a `config.json` describes, padded to a good vocabulary size.

    Where the checkpoint has a sliding window, `max_seq_len` is its size, and a line says so: up to
    there, full attention is the same.

    Args:
        config: of `LlamaForCausalLM`, `MistralForCausalLM` or `Qwen2ForCausalLM`, with rotary
            parameters in either spelling (`rope_theta` and `rope_scaling`, `rope_parameters`).
        where: the file, for messages.

    Raises:
        UserError: a value is missing, wrong, or of something that we do not have.
    """
    values = Values(config, where)
    family = values.choice("model_type", {name: name for name in FAMILIES})
    return read_decoder(values.with_defaults(FAMILIES[family]), family)


def read_decoder(values: Values, family: str, tied: bool = False) -> LlamaConfig:
    """Returns the decoder that a section describes; see `read_llm_config`.

    Args:
        values: of the section, with the defaults of its family.
        family: a key of `FAMILIES`, whatever the section calls itself.
        tied: the head is tied even if the section does not say so.
    """
    _refuse_what_we_lack(values)
    vocab_size = values.size("vocab_size", most=_MOST_TOKENS)
    num_layers = values.size("num_hidden_layers", most=_MOST_LAYERS)
    num_heads, embed_dim = values.size("num_attention_heads"), values.size("hidden_size")
    rope_theta, rope_scaling = _read_rope(values)
    llm = LlamaConfig(
        vocab_size=vocab_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=values.size("num_key_value_heads", num_heads),
        head_dim=values.size("head_dim", embed_dim // num_heads),
        embed_dim=embed_dim,
        mlp_dim=values.size("intermediate_size"),
        max_seq_len=_read_max_seq_len(values, family, num_layers),
        vocab_multiple=512 if vocab_size >= _BIG_VOCABULARY else 64,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        norm_eps=values.number("rms_norm_eps"),
        tie_embeddings=values.flag("tie_word_embeddings", False) or tied,
        qkv_bias=family == "qwen2",
        activation=values.choice("hidden_act", _ACTIVATIONS),
    )
    return checked(llm, values.where)


def llm_config_json(llm: LlamaConfig) -> dict[str, Any]:
    """Returns the `config.json` of a decoder as JSON values: Qwen2's with biases, else Llama's.

    Rotary parameters come in the older spelling, which all releases read. What has to do with the
    tokenizer (ids of begin and end) and with storage (dtype) is not there.
    """
    values = {
        "architectures": ["Qwen2ForCausalLM" if llm.qkv_bias else "LlamaForCausalLM"],
        "model_type": "qwen2" if llm.qkv_bias else "llama",
        "vocab_size": llm.vocab_size,
        "hidden_size": llm.embed_dim,
        "intermediate_size": llm.mlp_dim,
        "num_hidden_layers": llm.num_layers,
        "num_attention_heads": llm.num_heads,
        "num_key_value_heads": llm.num_kv_heads,
        "head_dim": llm.head_dim,
        "hidden_act": {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[llm.activation],
        "max_position_embeddings": llm.max_seq_len,
        "rms_norm_eps": llm.norm_eps,
        "tie_word_embeddings": llm.tie_embeddings,
        "rope_theta": llm.rope_theta,
        "rope_scaling": _rope_json(llm.rope_scaling),
    }
    if llm.qkv_bias:
        return values | {"use_sliding_window": False}
    return values | {"attention_bias": False, "mlp_bias": False}


def _refuse_what_we_lack(values: Values) -> None:
    """Raises a UserError for what would change the arithmetic and is not implemented."""
    no_bias = "supported: false (biases only as Qwen2 has them, on query, key and value)"
    values.refuse("attention_bias", (False,), no_bias)
    values.refuse("mlp_bias", (False,), "supported: false")
    refuse_quantized(values)
    for key in _EXPERTS:
        values.refuse(key, (0,), "mixtures of experts are not supported")


def refuse_quantized(values: Values) -> None:
    """Raises a UserError if the weights beside a file are quantized."""
    why = "quantized weights are not supported; take the checkpoint in bfloat16 or float16"
    values.refuse("quantization_config", ({},), why)


def _read_rope(values: Values) -> tuple[float, RopeScaling]:
    """Returns rotary base and scaling, from either spelling."""
    keys = ("rope_scaling", "rope_parameters")
    key = next((key for key in keys if values.get(key)), None)
    if key is None:
        return values.number("rope_theta", 10000.0), RopeScaling()
    rope = values.section(key)
    for name, value in rope.raw().items():
        if isinstance(value, Mapping):
            raise rope.wrong(name, value, "the same parameters for all layers are supported")
    for section in (values, rope):
        section.refuse("partial_rotary_factor", (1,), "supported: 1, whole heads are rotated")
    theta = rope.number("rope_theta", values.number("rope_theta", 10000.0))
    kind = rope.choice("rope_type" if "rope_type" in rope else "type", _ROPE_TYPES, "default")
    if kind == "none":
        return theta, RopeScaling()
    if kind == "linear":
        return theta, RopeScaling(kind="linear", factor=rope.number("factor"))
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise rope.wrong("high_freq_factor", high, f"expected more than low_freq_factor={low}")
    original = rope.size("original_max_position_embeddings", most=_LONGEST)
    return theta, RopeScaling(
        kind="llama3",
        factor=rope.number("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_seq_len=original,
    )


def _rope_json(scaling: RopeScaling) -> dict[str, Any] | None:
    if scaling.kind == "none":
        return None
    # Releases before 4.43 call it "type"; those know linear scaling only.
    if scaling.kind == "linear":
        return {"rope_type": "linear", "type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_seq_len,
    }


def _read_max_seq_len(values: Values, family: str, num_layers: int) -> int:
    """Returns the longest sequence for which full attention is what the checkpoint does."""
    longest = values.size("max_position_embeddings", most=_LONGEST)
    window = _read_window(values, family, num_layers)
    if window is None or window >= longest:
        return longest
    print(
        f"{values.where}: layers look back sliding_window={window} tokens; sequences of up to so "
        f"many are the same with full attention, so max_seq_len is {window}, not {longest}",
        file=sys.stderr,
    )
    return window


def _read_window(values: Values, family: str, num_layers: int) -> int | None:
    """Returns the sliding window of any layer; None: every layer sees everything."""
    if family == "llama":
        return None
    kinds = values.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or any(kind not in _LAYER_TYPES for kind in kinds):
            raise values.wrong("layer_types", kinds, f"supported: a list of {_LAYER_TYPES}")
    if family == "qwen2":
        first = values.get("max_window_layers")
        if type(first) is not int:
            raise values.wrong("max_window_layers", first, "expected a whole number")
        slides = first < num_layers if kinds is None else _LAYER_TYPES[1] in kinds
        if not values.flag("use_sliding_window") or not slides:
            return None
    if values.get("sliding_window") is None:
        return None
    return values.size("sliding_window", most=_LONGEST)
