"""The vision tower of SigLIP as far as MetaMorph uses it, and the reduction of its tokens.

An own tower, so that neither the names of weights nor the meaning of a hidden state change with
the release of transformers.

**Source:** SigLIP (arXiv 2303.15343), a ViT (arXiv 2010.11929).
"""

import math

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class MetaMorphVisionEmbeddings(nn.Module):
    """Pixels -> one vector per patch, with learned positions."""

    def __init__(self, config):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, stride=patch)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2, width)

    def forward(self, pixel_values):
        """Returns [num_images, patches, E], in reading order."""
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        patches = patches.flatten(2).transpose(1, 2)
        count, expected = patches.shape[1], self.position_embedding.num_embeddings
        if count != expected:
            size = "x".join(map(str, pixel_values.shape[-2:]))
            raise ValueError(
                f"images of {size} pixels have {count} patches, but the tower was made for "
                f"{expected}; resize images with the processor"
            )
        return patches + self.position_embedding(torch.arange(count, device=patches.device))


class MetaMorphVisionAttention(nn.Module):
    """Every patch looks at every patch, through the attention that the configuration names."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.head_dim = width // config.num_attention_heads
        # Read by the attention functions of transformers.
        self.scaling, self.is_causal, self.num_key_value_groups = self.head_dim**-0.5, False, 1
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden):
        """Returns the update."""
        shape = (*hidden.shape[:-1], -1, self.head_dim)
        query, key, value = (
            project(hidden).view(shape).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        name = self.config._attn_implementation
        attend = _attend if name in (None, "eager") else ALL_ATTENTION_FUNCTIONS[name]
        options = {"scaling": self.scaling, "is_causal": False, "dropout": 0.0}
        mixed, _ = attend(self, query, key, value, None, **options)
        return self.out_proj(mixed.reshape(hidden.shape))


def _attend(module, query, key, value, attention_mask, scaling, **kwargs):
    """Returns (mixed values [B, T, N, H], weights); softmax in float32."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    weights = functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2), weights


class MetaMorphVisionMlp(nn.Module):
    """Two linear layers with the tower's own activation, tanh GELU."""

    def __init__(self, config):
        super().__init__()
        self.activation = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden):
        """Returns the update."""
        return self.fc2(self.activation(self.fc1(hidden)))


class MetaMorphVisionBlock(nn.Module):
    """Attention and MLP, each behind a LayerNorm."""

    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = MetaMorphVisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MetaMorphVisionMlp(config)

    def forward(self, hidden):
        """Returns [num_images, patches, E]."""
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        return hidden + self.mlp(self.layer_norm2(hidden))


class MetaMorphVisionTower(nn.Module):
    """SigLIP up to the feature layer: no later blocks, no post-layernorm, no pooling."""

    def __init__(self, config, num_blocks):
        super().__init__()
        self.embeddings = MetaMorphVisionEmbeddings(config)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            [MetaMorphVisionBlock(config) for _ in range(num_blocks)]
        )

    def forward(self, pixel_values):
        """Returns [num_images, patches, E], before any norm."""
        hidden = self.embeddings(pixel_values)
        for block in self.encoder.layers:
            hidden = block(hidden)
        return hidden


def resize_tokens(tokens, num_tokens):
    """Returns `num_tokens` tokens per image, [num_images, P, E]: bilinear, half-pixel centres.

    Without antialiasing, as the model was trained: shrinking 27 x 27 to 8 x 8 reads two taps per
    axis.
    """
    if tokens.shape[1] == num_tokens:
        return tokens
    old, new = math.isqrt(tokens.shape[1]), math.isqrt(num_tokens)
    grid = tokens.transpose(1, 2).unflatten(2, (old, old))
    grid = functional.interpolate(
        grid, size=(new, new), mode="bilinear", align_corners=False, antialias=False
    )
    return grid.flatten(2).transpose(1, 2)
