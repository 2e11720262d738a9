"""Our decoder against `transformers` on random small configurations, packed rows against single
sequences: hidden states, logits, and the gradient of every parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from metamorph_jax.config.schema_model import LlamaConfig, RopeScaling
from metamorph_jax.hub import llama as hub
from metamorph_jax.models.llama import Llama
from tests import tolerances
from tests.model_helpers import quick_jit
from tests.parity.torch_models import randomise

LENGTHS = (6, 9)  # of the two segments of a row
NUM_ROWS, ROW_LENGTH = 2, 17  # so two positions are padding
SCALINGS = [
    RopeScaling(),
    RopeScaling(kind="linear", factor=4.0),
    # Short original lengths, so that all three branches of the formula occur.
    RopeScaling(kind="llama3", factor=8.0, original_max_seq_len=64),
    RopeScaling(kind="llama3", factor=32.0, high_freq_factor=3.0, original_max_seq_len=256),
]


def random_config(seed: int) -> LlamaConfig:
    rng = np.random.default_rng(seed)
    num_kv_heads = int(rng.choice([1, 2, 3]))
    return LlamaConfig(
        vocab_size=int(rng.integers(31, 80)),
        vocab_multiple=int(rng.choice([1, 16, 64])),
        num_layers=int(rng.integers(1, 4)),
        num_heads=num_kv_heads * int(rng.choice([1, 2, 4])),
        num_kv_heads=num_kv_heads,
        head_dim=int(rng.choice([4, 8, 10])),
        embed_dim=int(rng.choice([12, 24])),  # transformers wants a multiple of num_heads
        mlp_dim=int(rng.choice([16, 28, 40])),
        rope_theta=float(rng.choice([100.0, 10000.0, 500000.0])),
        rope_scaling=SCALINGS[seed % len(SCALINGS)],
        norm_eps=float(rng.choice([1e-6, 1e-5, 1e-3])),
        tie_embeddings=bool(seed % 3 == 0),
    )


def torch_model(config: LlamaConfig, seed: int) -> transformers.LlamaForCausalLM:
    scaling = config.rope_scaling
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if scaling.kind == "linear":
        rope |= {"rope_type": "linear", "factor": scaling.factor}
    if scaling.kind == "llama3":
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_seq_len,
        }
    hf_config = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        hidden_size=config.embed_dim,
        intermediate_size=config.mlp_dim,
        rms_norm_eps=config.norm_eps,
        rope_parameters=rope,
        tie_word_embeddings=config.tie_embeddings,
        max_position_embeddings=config.max_seq_len,
        attn_implementation="eager",
    )
    return randomise(transformers.LlamaForCausalLM(hf_config), seed)


def tokens_and_cotangent(config: LlamaConfig, seed: int):
    rng = np.random.default_rng(seed)
    total = sum(LENGTHS)
    tokens = rng.integers(0, config.vocab_size, (NUM_ROWS, total))
    cotangent = rng.normal(size=(NUM_ROWS, total, config.embed_dim)).astype(np.float32)
    return tokens, cotangent / cotangent.size**0.5


def torch_results(model, tokens, cotangent):
    """Returns hidden states, logits and gradients, one sequence at a time."""
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
    grads = {name: p.grad.numpy() for name, p in model.named_parameters()}
    return np.concatenate(hidden), np.concatenate(logits), grads


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
    model = Llama(config, jnp.dtype("float32"), jnp.dtype("float32"))

    def loss(params):
        def call(method, *args):
            return model.apply({"params": params}, *args, method=method)

        hidden = call("decode", call("embed", inputs[0]), *inputs[1:])
        logits = call("logits", hidden)
        total = jnp.sum(hidden * cotangent)
        total += jnp.sum(jax.nn.logsumexp(logits, axis=-1) * weights)
        return total, (hidden, logits)

    grads, (hidden, logits) = quick_jit(jax.grad(loss, has_aux=True))(params)
    real = np.asarray(inputs[1]) > 0
    logits = np.asarray(logits)[real]
    assert (logits[:, config.vocab_size :] < -1e8).all()
    return np.asarray(hidden)[real], logits[:, : config.vocab_size], grads


@pytest.mark.parametrize("seed", range(12))
def test_decoder(seed):
    config = random_config(seed)
    model = torch_model(config, seed)
    tensors = {name: t.numpy() for name, t in model.state_dict().items()}
    params = jax.tree.map(jnp.asarray, hub.from_hf(tensors, config))
    tokens, cotangent = tokens_and_cotangent(config, seed)
    theirs = torch_results(model, tokens, cotangent)
    ours = our_results(config, params, tokens, cotangent)
    for our_values, their_values in zip(ours[:2], theirs[:2], strict=True):
        assert 0.1 < np.abs(their_values).max() < 10
        np.testing.assert_allclose(our_values, their_values, rtol=0, atol=tolerances.PARITY)
    our_grads = hub.to_hf(jax.device_get(ours[2]), config)
    assert set(theirs[2]) == set(our_grads)
    for name, gradient in theirs[2].items():
        np.testing.assert_allclose(
            our_grads[name], gradient, rtol=0, atol=tolerances.PARITY, err_msg=name
        )


def test_configurations_cover_the_options():
    configs = [random_config(seed) for seed in range(12)]
    assert {c.rope_scaling.kind for c in configs} == {"none", "linear", "llama3"}
    assert {c.num_heads // c.num_kv_heads for c in configs} == {1, 2, 4}
    assert {c.tie_embeddings for c in configs} == {True, False}
    assert any(c.padded_vocab_size > c.vocab_size for c in configs)
