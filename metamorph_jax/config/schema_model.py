"""What a model is made of: decoder, vision tower, token reduction, connector, vision head.

Read `schema_run.py` next for data, stages and optimisers, and `presets.py` for published sizes.
"""

import dataclasses
import math
import re
from typing import Any, Literal

_MLP_GELU = re.compile(r"mlp([1-9]\d*)x_gelu")
_TOWER_ACTIVATIONS = {"siglip": "gelu_tanh", "clip": "quick_gelu"}


def not_positive(config: Any, *names: str) -> list[str]:
    """Returns a sentence for each of these fields that is no positive, finite number.

    Fields that are None are left out. What divides by a field comes after this check.
    """
    found = []
    for name in names:
        value = getattr(config, name)
        if isinstance(value, int) and value < 1:
            found.append(f"{name}={value} must be at least 1")
        elif isinstance(value, float) and not 0 < value < math.inf:
            found.append(f"{name}={value} must be positive and finite")
    return found


def negative(config: Any, *names: str) -> list[str]:
    """Returns a sentence for each of these fields that is negative, infinite or no number."""
    values = [(name, getattr(config, name)) for name in names]
    return [
        f"{name}={value} must be at least 0" + ("" if isinstance(value, int) else " and finite")
        for name, value in values
        if value is not None and not 0 <= value < math.inf
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched. Source: HF transformers `modeling_rope_utils.py`.

    Attributes:
        kind: `none`, `linear` (positions divided by `factor`) or `llama3`.
        factor: how many times longer the context becomes.
        low_freq_factor: llama3 only; wavelengths above original_max_seq_len / this are stretched.
        high_freq_factor: llama3 only; wavelengths below original_max_seq_len / this are kept.
        original_max_seq_len: llama3 only; the context of pretraining, in tokens.
    """

    kind: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len")
        return not_positive(self, *names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """A decoder of Llama's kind: Llama, Vicuna, Mistral, Qwen2.

    Attributes:
        vocab_size: true number of token ids, image tokens included.
        vocab_multiple: the tables are padded to a multiple of this; padded logits are masked.
        max_seq_len: longest sequence that the decoder is meant for: by its rotary embedding, or by
            a sliding window that we do not have (up to its size, full attention is the same).
        tie_embeddings: the output head is the transposed input table.
        qkv_bias: query, key and value have biases, as in Qwen2.
        activation: of the gate; `gelu` is the exact (erf) form.
        remat: what the backward pass recomputes: `none`; `dots`: all but matrix products;
            `attention`: whole blocks but for attention's result; `full`: whole blocks; `offload`:
            the same, and what enters a block waits in the host's memory (docs/memory.md).
        attention: what computes it in training: `xla` (the reference), `chunked`, `splash` (TPU),
            `flash` (GPU), or `auto`, which says in the log what it chose.
        scan_unroll: how many layers one scan iteration holds; num_layers unrolls the loop.
    """

    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    embed_dim: int
    mlp_dim: int
    max_seq_len: int = 4096
    vocab_multiple: int = 128
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling = RopeScaling()
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    qkv_bias: bool = False
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    remat: Literal["none", "dots", "attention", "full", "offload"] = "none"
    attention: Literal["auto", "xla", "chunked", "splash", "flash"] = "auto"
    scan_unroll: int = 1

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table as allocated."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        sizes = ("vocab_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "embed_dim")
        limits = ("mlp_dim", "max_seq_len", "vocab_multiple", "scan_unroll")
        found = not_positive(self, *sizes, *limits, "rope_theta", "norm_eps")
        if found:
            return found
        if self.num_heads % self.num_kv_heads:
            found.append(
                f"num_heads={self.num_heads} is no multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            found.append(f"head_dim={self.head_dim} is odd; rotary embedding needs pairs")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A ViT tower, used up to `feature_layer` and without post-layernorm or pooling head.

    Attributes:
        family: `siglip` (no CLS, tanh GELU, patch bias) or `clip` (CLS, quick GELU, pre-norm).
        activation: of the MLPs; None: the family's. OpenCLIP's towers have the exact `gelu`.
        feature_layer: index into the HF hidden states (0 is the embedding); -1 is the output of
            the last block *before* post-layernorm. Later blocks are not created.
        cls_policy: `patch` drops the CLS token of CLIP, `cls_patch` keeps it; SigLIP has none.
        remat: recompute blocks in the backward pass when the tower is trained.
    """

    family: Literal["siglip", "clip"] = "siglip"
    image_size: int
    patch_size: int
    num_layers: int
    num_heads: int
    embed_dim: int
    mlp_dim: int
    norm_eps: float = 1e-6
    activation: Literal["gelu_tanh", "quick_gelu", "gelu"] | None = None
    feature_layer: int = -1
    cls_policy: Literal["patch", "cls_patch"] = "patch"
    remat: Literal["none", "full", "dots"] = "none"
    scan_unroll: int = 1

    @property
    def mlp_activation(self) -> str:
        """The activation of the MLPs: its own, or the family's."""
        return self.activation or _TOWER_ACTIVATIONS[self.family]

    @property
    def grid_size(self) -> int:
        """Patches per side; pixels that do not fill a patch are unused."""
        return self.image_size // self.patch_size

    @property
    def num_used_layers(self) -> int:
        """Blocks that run to reach `feature_layer`."""
        layer = self.feature_layer
        return layer if layer >= 0 else self.num_layers + 1 + layer

    @property
    def num_tokens(self) -> int:
        """Tokens that the tower returns for one image."""
        has_cls = self.family == "clip" and self.cls_policy == "cls_patch"
        return self.grid_size**2 + int(has_cls)

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        sizes = ("image_size", "patch_size", "num_layers", "num_heads", "embed_dim", "mlp_dim")
        found = not_positive(self, *sizes, "norm_eps", "scan_unroll")
        if found:
            return found
        if self.image_size < self.patch_size:
            found.append(
                f"image_size={self.image_size} is smaller than patch_size={self.patch_size}"
            )
        if self.embed_dim % self.num_heads:
            found.append(f"embed_dim={self.embed_dim} is no multiple of num_heads={self.num_heads}")
        if not 0 <= self.num_used_layers <= self.num_layers:
            found.append(
                f"feature_layer={self.feature_layer} is outside "
                f"[{-self.num_layers - 1}, {self.num_layers}] of a {self.num_layers}-layer tower"
            )
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisualTokensConfig:
    """How the tower's tokens become the P visual tokens that the decoder reads and predicts.

    Attributes:
        reduction: `none`; `interpolation` (bilinear, half-pixel centres, no antialiasing);
            `concat_interpolation` (bilinear to twice the side, each 2x2 cell concatenated).
        num_tokens: P; a square number unless reduction is `none`.
        normalize: divide each token by its L2 norm (the paper); predictions likewise.
        softmax_temperature: if set, features and predictions become softmax(x / temperature).
    """

    reduction: Literal["none", "interpolation", "concat_interpolation"] = "interpolation"
    num_tokens: int = 64
    normalize: bool = True
    softmax_temperature: float | None = None

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        if found := not_positive(self, "num_tokens", "softmax_temperature"):
            return found
        if self.reduction != "none" and round(self.num_tokens**0.5) ** 2 != self.num_tokens:
            return [f"num_tokens={self.num_tokens} is no square, which {self.reduction} needs"]
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The MetaMorph composition; without a vision head and normalisation, that of LLaVA.

    Attributes:
        connector: `linear` or `mlpNx_gelu` (N linear layers with exact GELU between them).
        vision_head: `linear`, `mlp` (two linear layers), `mlp2x_gelu` (three), or `none`: images
            are read and not predicted.
        dtype: of activations and matrix products; parameters are cast to it for compute.
        param_dtype: of the master parameters.
        contrastive_dim: width of the shared image/text space of the `contrastive` objective; None:
            the model has no contrastive head.
        init_from: folders whose weights a new run begins with: Hugging Face ones of a decoder, a
            tower or a whole model, or those of our own checkpoints. Each part may be in one of
            them; parts in none begin at random.
        image_newline: the model has a learned vector that ends each line of an `anyres` image.
    """

    llm: LlamaConfig
    vision: VisionConfig
    visual_tokens: VisualTokensConfig = VisualTokensConfig()
    connector: str = "mlp2x_gelu"
    vision_head: Literal["linear", "mlp", "mlp2x_gelu", "none"] = "mlp"
    dtype: Literal["float32", "bfloat16"] = "float32"
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    contrastive_dim: int | None = None
    init_from: tuple[str, ...] = ()
    image_newline: bool = False

    @property
    def visual_dim(self) -> int:
        """E: width of one visual token after reduction."""
        concat = self.visual_tokens.reduction == "concat_interpolation"
        return self.vision.embed_dim * (4 if concat else 1)

    @property
    def num_connector_layers(self) -> int:
        """Linear layers of the connector."""
        match = _MLP_GELU.fullmatch(self.connector)
        return int(match.group(1)) if match else 1

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        found = not_positive(self, "contrastive_dim")
        if self.connector != "linear" and not _MLP_GELU.fullmatch(self.connector):
            found.append(
                f"connector={self.connector!r} is neither 'linear' nor 'mlpNx_gelu', N >= 1"
            )
        tokens = self.visual_tokens
        if tokens.reduction == "none" and tokens.num_tokens != self.vision.num_tokens:
            found.append(
                f"visual_tokens.num_tokens={tokens.num_tokens}, but the tower returns "
                f"{self.vision.num_tokens} tokens and visual_tokens.reduction is 'none'"
            )
        if tokens.reduction != "none" and self.vision.num_tokens != self.vision.grid_size**2:
            found.append("token reduction needs a square grid: set vision.cls_policy='patch'")
        return found
