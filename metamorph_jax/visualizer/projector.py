"""Visual tokens -> conditioning tokens for the U-Net's cross-attention.

Module and parameter names are those of MetaMorph's released visualizer, so that its weights would
load. Padding to the U-Net's length and dropped conditions are in model.py.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamorph_jax.typing import Float
from metamorph_jax.visualizer.schema import ProjectorConfig


class MlpProjector(nn.Module):
    """(Linear, LayerNorm, ReLU) blocks, and a last Linear and LayerNorm without ReLU.

    **Source:** MetaMorph, inference/adapter.py, mode `mlp`; golden case F.
    """

    def __init__(self, input_dim: int, output_dim: int, config: ProjectorConfig):
        super().__init__()
        widths = [input_dim] + [config.hidden_dim] * (config.num_layers - 1) + [output_dim]
        pairs = list(itertools.pairwise(widths))
        self.layers = nn.ModuleList(nn.Linear(width, out) for width, out in pairs)
        self.norms = nn.ModuleList(nn.LayerNorm(out) for _, out in pairs)

    def forward(self, tokens: Float[Tensor, "B P E"]) -> Float[Tensor, "B P width"]:
        """Returns one conditioning token per visual token."""
        hidden = tokens
        for index, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            hidden = norm(layer(hidden))
            if index < len(self.layers) - 1:
                hidden = F.relu(hidden)
        return hidden


class QueryLayer(nn.Module):
    """Cross-attention and, in mode `xattnffn`, a ReLU feed-forward; both added, then normalised."""

    def __init__(self, width: int, num_heads: int, *, has_ffn: bool):
        super().__init__()
        self.cross_attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.norm1 = nn.LayerNorm(width)
        if has_ffn:
            self.ffn = nn.Sequential(
                nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
            )
            self.norm2 = nn.LayerNorm(width)
        self.has_ffn = has_ffn

    def forward(
        self, queries: Float[Tensor, "B queries width"], keys: Float[Tensor, "B P width"]
    ) -> Float[Tensor, "B queries width"]:
        """Returns the queries after reading the keys."""
        read, _ = self.cross_attn(queries, keys, keys, need_weights=False)
        queries = self.norm1(queries + read)
        return self.norm2(queries + self.ffn(queries)) if self.has_ffn else queries


class QueryProjector(nn.Module):
    """Learned queries that read the visual tokens through cross-attention layers.

    **Source:** MetaMorph, inference/adapter.py, modes `xattn` and `xattnffn`; golden case F.
    """

    def __init__(self, input_dim: int, output_dim: int, config: ProjectorConfig):
        super().__init__()
        self.proj = nn.Linear(input_dim, output_dim)
        self.input_norm = nn.LayerNorm(output_dim)
        self.token_embeddings = nn.Parameter(torch.randn(1, config.num_queries, output_dim))
        has_ffn = config.mode == "xattnffn"
        self.cross_attn_layers = nn.ModuleList(
            QueryLayer(output_dim, config.num_heads, has_ffn=has_ffn)
            for _ in range(config.num_layers)
        )

    def forward(self, tokens: Float[Tensor, "B P E"]) -> Float[Tensor, "B queries width"]:
        """Returns one conditioning token per learned query."""
        keys = self.input_norm(self.proj(tokens))
        queries = self.token_embeddings.expand(tokens.shape[0], -1, -1)
        for layer in self.cross_attn_layers:
            queries = layer(queries, keys)
        return queries


class TransformerProjector(nn.Module):
    """A pre-norm encoder for the visual tokens, and a decoder whose input is learned queries.

    **Source:** MetaMorph, visualization/train.py, mode `transformer`: feed-forward four times as
    wide, no dropout. No released weights and no golden numbers exist, so names are ours.
    """

    def __init__(self, input_dim: int, output_dim: int, config: ProjectorConfig):
        super().__init__()
        width, heads = config.hidden_dim, config.num_heads
        sizes = {"dim_feedforward": 4 * width, "dropout": 0.0}
        order = {"norm_first": True, "batch_first": True}
        self.proj_in = nn.Linear(input_dim, width)
        self.token_embeddings = nn.Parameter(torch.randn(1, config.num_queries, width))
        encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(width, heads, **sizes, **order),
            config.num_layers,
            nn.LayerNorm(width),
            enable_nested_tensor=False,  # does not go with pre-norm
        )
        self.transformer = nn.Transformer(
            width,
            heads,
            custom_encoder=encoder,
            num_decoder_layers=config.num_layers,
            **sizes,
            **order,
        )
        self.proj_out = nn.Linear(width, output_dim)

    def forward(self, tokens: Float[Tensor, "B P E"]) -> Float[Tensor, "B queries width"]:
        """Returns one conditioning token per learned query."""
        queries = self.token_embeddings.expand(tokens.shape[0], -1, -1)
        return self.proj_out(self.transformer(self.proj_in(tokens), queries))


_KINDS = {
    "mlp": MlpProjector,
    "xattn": QueryProjector,
    "xattnffn": QueryProjector,
    "transformer": TransformerProjector,
}


def create_projector(
    input_dim: int, output_dim: int, config: ProjectorConfig
) -> MlpProjector | QueryProjector | TransformerProjector:
    """Returns a projector with fresh weights (PyTorch's defaults)."""
    return _KINDS[config.mode](input_dim, output_dim, config)
