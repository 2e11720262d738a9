"""Sizes at the paper's widths; values are in the golden tests."""

import dataclasses

import pytest
import torch

from metamorph_jax.visualizer.model import Visualizer
from metamorph_jax.visualizer.projector import create_projector
from metamorph_jax.visualizer.schema import ProjectorConfig
from tests import tolerances
from tests.visualizer_files import MODEL


def test_default_is_the_released_visualizers_projector():
    with torch.device("meta"):
        projector = create_projector(1152, 768, ProjectorConfig())
    assert sum(value.numel() for value in projector.parameters()) == 3_940_608


@pytest.mark.parametrize("mode", ["mlp", "xattn", "xattnffn", "transformer"])
@pytest.mark.parametrize("num_tokens", [64, 16])
def test_every_mode_conditions_stable_diffusion_on_77_tokens_of_768(mode, num_tokens):
    projector = ProjectorConfig(mode=mode, hidden_dim=16, num_layers=2, num_heads=4)
    unet = dataclasses.replace(MODEL.unet, channels=(8, 16))
    config = dataclasses.replace(
        MODEL,
        num_tokens=num_tokens,
        token_dim=1152,
        context_dim=768,
        context_len=77,
        projector=projector,
        unet=unet,
    )
    tokens = torch.randn((2, num_tokens, 1152), generator=torch.Generator().manual_seed(0))
    context = Visualizer(config).condition(tokens, torch.tensor([False, True]))
    assert context.shape == (2, 77, 768)
    used = num_tokens if mode == "mlp" else 77
    assert context[0, :used].abs().sum(-1).min() > 0
    assert context[0, used:].abs().sum() == 0
    assert context[1].abs().max() == 0  # dropped: the whole row


def layer_norm(x, norm):
    return torch.nn.functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias)


def attend(x, keys, attention):
    """Returns multi-head attention, written out."""
    width, heads = x.shape[-1], attention.num_heads
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    query, key, value = (
        (source @ w.T + b).unflatten(-1, (heads, width // heads)).transpose(1, 2)
        for source, w, b in zip((x, keys, keys), weights, biases, strict=True)
    )
    scores = query @ key.transpose(2, 3) / (width // heads) ** 0.5
    mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    return attention.out_proj(mixed)


def test_transformer_is_pre_norm_with_relu():
    torch.manual_seed(0)
    config = ProjectorConfig(
        mode="transformer", hidden_dim=8, num_layers=2, num_heads=2, num_queries=3
    )
    projector = create_projector(6, 5, config)
    tokens = torch.randn(2, 4, 6)
    encoder, decoder = projector.transformer.encoder, projector.transformer.decoder
    memory = projector.proj_in(tokens)
    for layer in encoder.layers:
        normed = layer_norm(memory, layer.norm1)
        memory = memory + attend(normed, normed, layer.self_attn)
        memory = memory + layer.linear2(layer.linear1(layer_norm(memory, layer.norm2)).relu())
    memory = layer_norm(memory, encoder.norm)
    queries = projector.token_embeddings.expand(2, -1, -1)
    for layer in decoder.layers:
        normed = layer_norm(queries, layer.norm1)
        queries = queries + attend(normed, normed, layer.self_attn)
        queries = queries + attend(layer_norm(queries, layer.norm2), memory, layer.multihead_attn)
        queries = queries + layer.linear2(layer.linear1(layer_norm(queries, layer.norm3)).relu())
    expected = projector.proj_out(layer_norm(queries, decoder.norm))
    assert (projector(tokens) - expected).abs().max() <= tolerances.PARITY
    assert projector.transformer.encoder.layers[0].linear1.out_features == 32


def test_queries_set_the_number_of_tokens():
    config = ProjectorConfig(mode="xattnffn", num_layers=1, num_heads=2, num_queries=7)
    assert create_projector(6, 8, config)(torch.ones(2, 4, 6)).shape == (2, 7, 8)
