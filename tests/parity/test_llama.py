"""Our decoder against `transformers` on random small configurations of every family, each read from
its own `config.json`; packed rows against single sequences: hidden states of every layer, logits,
and the gradient of every parameter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from metamorph_jax.config.schema_model import LlamaConfig
from metamorph_jax.hub import llama as hub
from metamorph_jax.hub.configs import read_llm_config
from metamorph_jax.models.llama import Llama, LlamaBlock
from metamorph_jax.ops.rope import rope_tables
from tests import tolerances
from tests.model_helpers import quick_jit
from tests.parity.torch_models import FAMILIES, largest_differences, randomise

LENGTHS = (6, 9)  # of the two segments of a row
NUM_ROWS, ROW_LENGTH = 2, 17  # so two positions are padding
SEEDS = range(32)
ROPES = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    # Short original lengths, so that all three branches of the formula occur.
    {"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}
    | {"low_freq_factor": 1.0, "original_max_position_embeddings": 64},
    {"rope_type": "llama3", "factor": 32.0, "high_freq_factor": 3.0}
    | {"low_freq_factor": 1.0, "original_max_position_embeddings": 256},
]
F32 = jnp.dtype("float32")


def random_hf_config(seed: int) -> transformers.PretrainedConfig:
    rng = np.random.default_rng(seed)
    family = list(FAMILIES)[seed % len(FAMILIES)]
    num_kv_heads = int(rng.choice([1, 2, 3]))
    num_heads = num_kv_heads * int(rng.choice([1, 2, 4]))
    values = {
        "vocab_size": int(rng.integers(31, 80)),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "hidden_size": int(rng.choice([24, 48])),  # multiples of every num_heads
        "intermediate_size": int(rng.choice([16, 28, 40])),
        "hidden_act": str(rng.choice(["silu", "silu", "gelu", "gelu_pytorch_tanh"])),
        "rms_norm_eps": float(rng.choice([1e-6, 1e-5, 1e-3])),
        "rope_parameters": {"rope_theta": float(rng.choice([100.0, 10000.0, 500000.0]))}
        | ROPES[seed // len(FAMILIES) % len(ROPES)],
        "tie_word_embeddings": family == "llama_tied" or bool(rng.integers(3) == 0),
        "max_position_embeddings": 512,
        "attn_implementation": "eager",
    }
    head_dim = int(rng.choice([4, 8, 10]))
    if rng.integers(2) or values["hidden_size"] // num_heads % 2:
        values["head_dim"] = head_dim
    return FAMILIES[family].config(**(values | FAMILIES[family].window(rng)))


def our_config(hf_config: transformers.PretrainedConfig, seed: int) -> LlamaConfig:
    multiple = int(np.random.default_rng(seed).choice([1, 16, 64]))
    return dataclasses.replace(read_llm_config(hf_config.to_dict()), vocab_multiple=multiple)


def tokens_and_cotangent(config: LlamaConfig, seed: int):
    rng = np.random.default_rng(seed)
    total = sum(LENGTHS)
    tokens = rng.integers(0, config.vocab_size, (NUM_ROWS, total))
    cotangent = rng.normal(size=(NUM_ROWS, total, config.embed_dim)).astype(np.float32)
    return tokens, cotangent / cotangent.size**0.5


def torch_results(model, tokens, cotangent):
    """Returns states after each layer and the norm, logits, and gradients, of single sequences."""
    layers = [[] for _ in model.model.layers]
    for states, layer in zip(layers, model.model.layers, strict=True):
        layer.register_forward_hook(lambda _, args, out, states=states: states.append(out[0]))
    hidden, logits = [], []
    for row, row_cotangent in zip(tokens, cotangent, strict=True):
        start = 0
        for length in LENGTHS:
            part = torch.tensor(row[None, start : start + length])
            out = model.model(input_ids=part).last_hidden_state
            scores = model.lm_head(out)
            weighted = out[0] * torch.tensor(row_cotangent[start : start + length])
            (weighted.sum() + torch.logsumexp(scores, -1).mean() / 4).backward()
            hidden.append(out[0].detach().numpy())
            logits.append(scores[0].detach().numpy())
            start += length
    states = [torch.cat(parts).detach().numpy() for parts in layers]
    grads = {name: p.grad.numpy() for name, p in model.named_parameters()}
    return [*states, np.concatenate(hidden)], np.concatenate(logits), grads


def our_results(config, params, tokens, cotangent):
    """Returns the same from packed rows in one call."""
    pad = ((0, 0), (0, ROW_LENGTH - tokens.shape[1]))
    segments = np.repeat([[1] * LENGTHS[0] + [2] * LENGTHS[1]], NUM_ROWS, axis=0)
    positions = np.repeat([[*range(LENGTHS[0]), *range(LENGTHS[1])]], NUM_ROWS, axis=0)
    inputs = [jnp.asarray(np.pad(x, pad)) for x in (tokens, segments, positions)]
    cotangent = np.pad(cotangent, (*pad, (0, 0)))
    weights = np.zeros((NUM_ROWS, ROW_LENGTH), np.float32)
    weights[:, : LENGTHS[0]] = 1 / LENGTHS[0] / 4
    weights[:, LENGTHS[0] : sum(LENGTHS)] = 1 / LENGTHS[1] / 4
    model = Llama(config, F32, F32)

    def loss(params):
        def call(method, *args):
            return model.apply({"params": params}, *args, method=method)

        embeddings = call("embed", inputs[0])
        hidden = call("decode", embeddings, *inputs[1:])
        logits = call("logits", hidden)
        total = jnp.sum(hidden * cotangent)
        total += jnp.sum(jax.nn.logsumexp(logits, axis=-1) * weights)
        return total, (embeddings, hidden, logits)

    grads, (embeddings, hidden, logits) = quick_jit(jax.grad(loss, has_aux=True))(params)
    real = np.asarray(inputs[1]) > 0
    logits = np.asarray(logits)[real]
    assert (logits[:, config.vocab_size :] < -1e8).all()
    layers = layer_states(config, params, embeddings, *inputs[1:])
    states = [np.asarray(x)[real] for x in (*layers, hidden)]
    return states, logits[:, : config.vocab_size], grads


def layer_states(config, params, x, segments, positions):
    """Returns the states after each block, run one by one: a stack gives only its last ones."""
    scaling = {"theta": config.rope_theta, "scaling": config.rope_scaling}

    @quick_jit
    def block(params, x):
        rope = rope_tables(positions, head_dim=config.head_dim, **scaling)
        block = LlamaBlock(config, F32, F32)
        return block.apply({"params": params}, x, None, rope, segments, None)[0]

    states = [x]
    for i in range(config.num_layers):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
        states.append(block(own, states[-1]))
    return states[1:]


def differences(seed: int) -> dict[str, float]:
    """Returns the largest absolute difference of each layer, the logits, and each gradient."""
    hf_config = random_hf_config(seed)
    family = FAMILIES[list(FAMILIES)[seed % len(FAMILIES)]]
    model, config = randomise(family.model(hf_config), seed), our_config(hf_config, seed)
    tensors = {name: t.numpy() for name, t in model.state_dict().items()}
    params = jax.tree.map(jnp.asarray, hub.from_hf(tensors, config))
    tokens, cotangent = tokens_and_cotangent(config, seed)
    theirs = torch_results(model, tokens, cotangent)
    ours = our_results(config, params, tokens, cotangent)
    assert all(0.1 < np.abs(values).max() < 10 for values in (theirs[0][-1], theirs[1]))
    pairs = {f"layer {i}": pair for i, pair in enumerate(zip(ours[0], theirs[0], strict=True))}
    pairs["logits"] = ours[1], theirs[1]
    our_grads = hub.to_hf(jax.device_get(ours[2]), config)
    assert set(theirs[2]) == set(our_grads)
    pairs |= {f"gradient of {n}": (our_grads[n], theirs[2][n]) for n in our_grads}
    return largest_differences(pairs)


@pytest.mark.parametrize("seed", SEEDS)
def test_decoder(seed):
    for name, difference in differences(seed).items():
        assert difference <= tolerances.PARITY, name


def test_configurations_cover_the_options():
    hf_configs = [random_hf_config(seed) for seed in SEEDS]
    configs = [our_config(hf_config, seed) for seed, hf_config in enumerate(hf_configs)]
    assert {c.rope_scaling.kind for c in configs} == {"none", "linear", "llama3"}
    assert {c.num_heads // c.num_kv_heads for c in configs} == {1, 2, 4}
    assert {c.tie_embeddings for c in configs} == {c.qkv_bias for c in configs} == {True, False}
    assert {c.activation for c in configs} == {"silu", "gelu", "gelu_tanh"}
    assert any(c.padded_vocab_size > c.vocab_size for c in configs)
    assert any(c.head_dim * c.num_heads != c.embed_dim for c in configs)
    assert {c.max_seq_len for c in configs} == {512, 64}  # with and without a sliding window
    assert {h.model_type for h in hf_configs} == {"llama", "mistral", "qwen2"}
