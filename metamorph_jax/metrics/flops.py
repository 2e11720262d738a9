"""The project's one FLOP formula and the parameter counts it rests on, from the config alone.

Model FLOPs, not hardware FLOPs: causal attention is counted as half of the square, recomputation
(remat), padding and the optimiser are not counted at all. One multiply-add is two FLOPs. For the
fraction of a chip's peak that this gives, see `throughput.py`.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from metamorph_jax.config.schema_model import LlamaConfig, ModelConfig, VisionConfig
from metamorph_jax.typing import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchCounts:
    """What a packed batch contains, for the formula and for rates.

    Attributes:
        num_tokens: positions that are not padding (text and visual tokens).
        sum_squared_lengths: sum over packed examples of their squared length, in tokens^2.
        num_images: pictures that the tower reads, each view of an `anyres` image on its own.
        num_visual_targets: visual tokens that the vision head predicts.
    """

    num_tokens: int
    sum_squared_lengths: int = 0
    num_images: int = 0
    num_visual_targets: int = 0


def count_batch(batch: Mapping[str, Array], num_visual_tokens: int) -> BatchCounts:
    """Returns the counts of a packed batch that still is on the host.

    Args:
        batch: `metamorph_jax.typing.Batch` as numpy arrays.
        num_visual_tokens: P; used image slots are those that some position refers to.
    """
    segments = np.asarray(batch["segment_ids"])
    rows = np.broadcast_to(np.arange(segments.shape[0])[:, None], segments.shape)
    used = segments > 0
    keys = rows[used].astype(np.int64) * (int(segments.max(initial=0)) + 1) + segments[used]
    lengths = np.unique(keys, return_counts=True)[1].astype(np.int64)
    visual = np.asarray(batch.get("visual_sources", batch["visual_index"]))
    num_images = sum(len(np.unique(row[row >= 0] // num_visual_tokens)) for row in visual)
    return BatchCounts(
        num_tokens=int(lengths.sum()),
        sum_squared_lengths=int((lengths**2).sum()),
        num_images=num_images,
        num_visual_targets=int((np.asarray(batch["visual_target"]) >= 0).sum()),
    )


def model_flops(
    config: ModelConfig,
    counts: BatchCounts,
    trained: Iterable[str],
    excluded: Iterable[str] = (),
    *,
    has_features: bool = False,
) -> float:
    """Returns the FLOPs of one training step on a batch with these counts.

    A matrix that meets n tokens costs 2 * size * n forwards, as much again for its input's
    gradient when anything before it is trained, and as much again for its own gradient when it is
    trained itself. Causal attention costs 2 * L * width * sum(length^2) forwards and twice that
    backwards. With everything trained, this is 6 * N_mm + 6 * L * d * T per token.

    Args:
        config: the model.
        counts: from `count_batch`.
        trained: prefixes of trained parameters, as in a stage ("/" is everything).
        excluded: prefixes taken out of `trained`.
        has_features: the tower does not run, its features come with the batch.
    """
    select = _Selection(tuple(trained), tuple(excluded))
    sizes = matmul_params(config)
    tower = select("vision_tower")
    connector = select("connector")
    before_blocks = tower or connector or select("language_model/embed_tokens")
    blocks = select("language_model/blocks")
    after_blocks = before_blocks or blocks
    num_visual = counts.num_images * config.visual_tokens.num_tokens

    passes = 0 if has_features else 3 if tower else 1
    total = counts.num_images * vision_flops(config.vision) * passes
    total += _matmul(sizes["connector"], num_visual, connector, tower)
    total += _matmul(sizes["language_model/blocks"], counts.num_tokens, blocks, before_blocks)
    attention = 2 * config.llm.num_layers * config.llm.num_heads * config.llm.head_dim
    total += attention * counts.sum_squared_lengths * (3 if after_blocks else 1)
    head = select("language_model/lm_head")
    total += _matmul(sizes["language_model/lm_head"], counts.num_tokens, head, after_blocks)
    vision_head = select("vision_head")
    total += _matmul(sizes["vision_head"], counts.num_visual_targets, vision_head, after_blocks)
    return float(total)


def contrastive_flops(config: ModelConfig, num_images: int) -> float:
    """Returns the FLOPs of one step that trains the tower on `num_images` captioned images.

    The caption side is a bag of words and the heads are single matrices per image: together below
    one percent, and not counted.
    """
    return 3.0 * num_images * vision_flops(config.vision)


def forward_flops(config: ModelConfig, counts: BatchCounts) -> float:
    """Returns the FLOPs of one forward pass on a batch with these counts."""
    return model_flops(config, counts, trained=())


def vision_flops(config: VisionConfig) -> float:
    """Returns the FLOPs of the tower's forward pass on one image (attention is not causal)."""
    num_tokens = config.grid_size**2 + int(config.family == "clip")
    patches = config.patch_size**2 * 3 * config.embed_dim * config.grid_size**2
    weights = 4 * config.embed_dim**2 + 2 * config.embed_dim * config.mlp_dim
    attention = 2 * num_tokens * config.embed_dim
    return 2.0 * (patches + config.num_used_layers * num_tokens * (weights + attention))


def matmul_params(config: ModelConfig) -> dict[str, int]:
    """Returns the entries of the matrices that tokens are multiplied with, by part.

    The input embedding is a look-up and does not count; a tied table counts as `lm_head`. The
    vocabulary is the true one: padded rows are no useful work.
    """
    llm = config.llm
    width = llm.embed_dim
    block = 2 * width * llm.head_dim * (llm.num_heads + llm.num_kv_heads) + 3 * width * llm.mlp_dim
    return {
        "connector": sum(i * o for i, o in _connector_layers(config)),
        "language_model/blocks": llm.num_layers * block,
        "language_model/lm_head": width * llm.vocab_size,
        "vision_head": sum(i * o for i, o in _vision_head_layers(config)),
    }


def num_params(config: ModelConfig) -> dict[str, int]:
    """Returns the number of parameters by part of the tree, padded vocabulary rows left out.

    The parts `vision_head`, `contrastive` and `image_newline` are there only if the model has them.
    """
    parts = {
        "vision_tower": _vision_params(config.vision),
        "connector": sum((i + 1) * o for i, o in _connector_layers(config)),
        **{f"language_model/{name}": n for name, n in _llm_params(config.llm).items()},
    }
    if config.vision_head != "none":
        parts["vision_head"] = sum((i + 1) * o for i, o in _vision_head_layers(config))
    if config.contrastive_dim is not None:
        parts["contrastive"] = _contrastive_params(config, config.contrastive_dim)
    if config.image_newline:
        parts["image_newline"] = config.llm.embed_dim
    return parts


class _Selection:
    """Says whether a part of the tree is trained, wholly or in some of its entries."""

    def __init__(self, trained: tuple[str, ...], excluded: tuple[str, ...]):
        self._trained = tuple(prefix.strip("/") for prefix in trained)
        self._excluded = tuple(prefix.strip("/") for prefix in excluded)

    def __call__(self, part: str) -> bool:
        if any(_covers(prefix, part) for prefix in self._excluded):
            return False
        return any(_covers(prefix, part) or _covers(part, prefix) for prefix in self._trained)


def _covers(prefix: str, path: str) -> bool:
    """Returns whether `path` is `prefix` or lies under it."""
    return prefix == "" or path == prefix or path.startswith(prefix + "/")


def _matmul(size: int, num_tokens: int, is_trained: bool, needs_input_gradient: bool) -> int:
    """Returns the FLOPs of a matrix that meets `num_tokens` tokens in one training step."""
    return 2 * size * num_tokens * (1 + int(is_trained) + int(needs_input_gradient))


def _connector_layers(config: ModelConfig) -> list[tuple[int, int]]:
    """Returns (inputs, outputs) of the connector's linear layers."""
    width = config.llm.embed_dim
    return [(config.visual_dim, width)] + [(width, width)] * (config.num_connector_layers - 1)


def _vision_head_layers(config: ModelConfig) -> list[tuple[int, int]]:
    """Returns (inputs, outputs) of the vision head's linear layers; none without a head."""
    width = config.llm.embed_dim
    if config.vision_head == "none":
        return []
    hidden = {"linear": 0, "mlp": 1, "mlp2x_gelu": 2}[config.vision_head]
    return [(width, width)] * hidden + [(width, config.visual_dim)]


def _llm_params(llm: LlamaConfig) -> dict[str, int]:
    """Returns the decoder's parameters by part."""
    width = llm.embed_dim
    attention = 2 * width * llm.head_dim * (llm.num_heads + llm.num_kv_heads)
    if llm.qkv_bias:
        attention += llm.head_dim * (llm.num_heads + 2 * llm.num_kv_heads)
    block = attention + 3 * width * llm.mlp_dim + 2 * width
    table = llm.vocab_size * width
    parts = {"embed_tokens": table, "blocks": llm.num_layers * block, "final_norm": width}
    return parts if llm.tie_embeddings else parts | {"lm_head": table}


def _vision_params(vision: VisionConfig) -> int:
    """Returns the parameters of the tower up to its feature layer."""
    width, hidden = vision.embed_dim, vision.mlp_dim
    norms = 2 * 2 * width
    attention = 4 * (width * width + width)
    mlp = 2 * width * hidden + hidden + width
    patches = vision.patch_size**2 * 3 * width
    if vision.family == "siglip":
        stem = patches + width + vision.grid_size**2 * width
    else:  # class token and its position, pre-norm, no patch bias
        stem = patches + width + (vision.grid_size**2 + 1) * width + 2 * width
    return stem + vision.num_used_layers * (norms + attention + mlp)


def _contrastive_params(config: ModelConfig, dim: int) -> int:
    """Returns the parameters of the heads for pretraining the tower."""
    cell = config.vision.image_size // round(config.visual_tokens.num_tokens**0.5)
    text = config.llm.vocab_size * dim + (dim + 1) * dim
    image = (config.visual_dim + 1) * (dim + 3 * cell**2)
    temperature_and_bias = 2
    return text + image + temperature_and_bias
