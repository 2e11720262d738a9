"""What a run is made of: stages, each with data, objective, trained parameters and optimiser.

The model's own part of the schema is in `schema_model.py`, that of the data in `schema_data.py`.
"""

import dataclasses
from typing import Literal

from metamorph_jax.config.schema_data import DataConfig as DataConfig
from metamorph_jax.config.schema_data import Kind as Kind
from metamorph_jax.config.schema_data import SourceConfig as SourceConfig
from metamorph_jax.config.schema_model import ModelConfig, negative, not_positive

_TOWER = "vision_tower"  # its name in the tree of parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A local Hugging Face tokenizer folder and the chat template to use with it.

    Attributes:
        path: folder with `tokenizer.json`, or `tokenizer.model` of SentencePiece.
        template: docs/templates.md shows each; `jinja` is the folder's own chat template.
        image_tokens: images stand between an image-start and an image-end token, without which no
            answer can hold one; None: as the template is published, which is with them for
            `metamorph_llama3`, `llama3` and `jinja`, without for the others.
    """

    path: str
    template: Literal[
        "metamorph_llama3",
        "llama3",
        "plain",
        "v0",
        "v1",
        "llava_v1",
        "llama_2",
        "mpt",
        "chatml_direct",
        "mistral_instruct",
        "cambrian_llama3",
        "qwen",
        "next_llama3",
        "jinja",
    ] = "metamorph_llama3"
    image_tokens: bool | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW or Adafactor with global-norm clipping and a cosine schedule with linear warm-up.

    Attributes:
        algorithm: `adafactor` keeps row and column means of squared gradients and no first moment;
            it has no use for b1, b2, eps and moments.
        moments: how AdamW's are stored: `float32`, `bfloat16_first` (the first moment rounded) or
            `bfloat16` (the second, too, rounded at random so that small changes are not lost).
        learning_rate: peak, at `reference_batch_size`.
        reference_batch_size: if set, the peak is learning_rate * sqrt(global_batch_size / this), so
            that another batch keeps to the rule of the published rates.
        warmup_ratio: fraction of total_steps, rounded up.
        max_grad_norm: global norm that gradients are clipped to; None: no clipping.
        multipliers: learning-rate factor by parameter prefix, e.g. {"vision_head": 10.0}.
    """

    learning_rate: float
    algorithm: Literal["adamw", "adafactor"] = "adamw"
    moments: Literal["float32", "bfloat16_first", "bfloat16"] = "float32"
    reference_batch_size: int | None = None
    warmup_ratio: float = 0.03
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    multipliers: dict[str, float] = dataclasses.field(default_factory=dict)

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        found = not_positive(self, "learning_rate", "reference_batch_size", "eps", "max_grad_norm")
        found += negative(self, "weight_decay")
        if not 0 <= self.warmup_ratio <= 1:
            found.append(f"warmup_ratio={self.warmup_ratio} must be from 0 to 1")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)} must be at least 0 and below 1")
        if self.algorithm == "adafactor" and self.moments != "float32":
            found.append(
                f"moments={self.moments!r} are AdamW's, but algorithm is 'adafactor': leave it out"
            )
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights and kinds of the losses of a stage.

    Attributes:
        visual: `cosine` (the paper: minus the cosine), `l1` or `softmax` (cross-entropy between
            softmaxed features; needs model.visual_tokens.softmax_temperature).
        visual_weight: 0 computes and reports the visual loss without adding it.
        mean_over: `global_batch` weighs every token alike; `micro_batch` averages the means of
            accumulation steps and data shards, as data-parallel torch trainers do.
        vocab_chunk_size: vocabulary entries per block of the cross-entropy.
        reconstruction_weight: `contrastive` only; weight of a linear pixel reconstruction from the
            visual tokens, which keeps strokes, not only classes, in the features.
    """

    visual: Literal["cosine", "l1", "softmax"] = "cosine"
    visual_weight: float = 1.0
    mean_over: Literal["global_batch", "micro_batch"] = "global_batch"
    vocab_chunk_size: int = 8192
    reconstruction_weight: float = 0.0

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        found = not_positive(self, "vocab_chunk_size")
        return found + negative(self, "visual_weight", "reconstruction_weight")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of a run.

    Attributes:
        objective: `vpit` (text and visual prediction) or `contrastive` (SigLIP's sigmoid loss on
            images and captions, for a tower of one's own).
        trained: prefixes of trained parameters ("connector", "language_model/blocks"); all others
            are frozen: no gradient, no optimiser state. "/" trains everything.
        excluded: prefixes taken out of `trained`.
        frozen_dtype: what frozen parameters are stored in during the stage; None: as all others
            (model.param_dtype).
        train_new_token_rows: also train the two image-token rows of the input embedding.
        global_batch_size: rows per step over all devices (images, for `contrastive`).
        grad_accum_steps: micro-batches per step; `contrastive` has one, because its negatives are
            the other rows of the batch.
        shift_pixels: `contrastive` only; random translation of each image, in pixels.
    """

    name: str
    objective: Literal["vpit", "contrastive"] = "vpit"
    data: DataConfig
    trained: tuple[str, ...]
    excluded: tuple[str, ...] = ()
    frozen_dtype: Literal["float32", "bfloat16"] | None = None
    train_new_token_rows: bool = False
    optimizer: OptimizerConfig
    loss: LossConfig = LossConfig()
    total_steps: int
    global_batch_size: int
    grad_accum_steps: int = 1
    shift_pixels: int = 0

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        found = not_positive(self, "total_steps", "global_batch_size", "grad_accum_steps")
        found += negative(self, "shift_pixels")
        if found:
            return found
        if self.objective == "contrastive" and self.grad_accum_steps > 1:
            found.append(
                f"grad_accum_steps={self.grad_accum_steps}, but the negatives of 'contrastive' are "
                "the whole batch, which micro-batches would cut up: set it to 1"
            )
        if self.global_batch_size % self.grad_accum_steps:
            found.append(
                f"global_batch_size={self.global_batch_size} is no multiple of "
                f"grad_accum_steps={self.grad_accum_steps}"
            )
        if self.data.features and self.needs_pixels:
            found.append(
                f"data.features={self.data.features!r}, but a contrastive stage, or one that "
                "trains the vision tower, reads pixels: leave it empty"
            )
        if self.objective == "contrastive" and self.data.is_anyres:
            found.append(
                f"data.image_geometry={self.data.image_geometry!r}, but a contrastive stage "
                "compares captions with whole images: set it to 'square' or 'pad'"
            )
        return found

    @property
    def needs_pixels(self) -> bool:
        """Whether the stage cannot do with the kept features of a frozen tower."""
        if self.objective == "contrastive":
            return True
        heads = {prefix.strip("/").split("/")[0] for prefix in self.trained}
        without = {prefix.strip("/") for prefix in self.excluded}
        return bool(heads & {"", _TOWER}) and not without & {"", _TOWER}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices per mesh axis; -1 once: all that are left.

    Attributes:
        data: replicas that see different rows.
        fsdp: devices that share parameters and optimiser state, and see different rows.
        tensor: devices that share each matrix product.
        context: devices that share each row: every one has some of its positions (and its share of
            parameters, as of `fsdp`).
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    context: int = 1

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        sizes = (self.data, self.fsdp, self.context, self.tensor)
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            return [
                f"(data, fsdp, context, tensor)={sizes}: positive numbers, or -1 once, were "
                "expected"
            ]
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When state is saved.

    Attributes:
        interval_steps: steps between saves; the end of a stage is always saved.
        keep: newest checkpoints kept, at least 2.
    """

    interval_steps: int = 500
    keep: int = 2

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        found = not_positive(self, "interval_steps")
        if self.keep < 2:
            found.append(f"keep={self.keep}: at least 2 are kept for fall-back")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class PicturesConfig:
    """Held-out pictures, painted now and then while a VPiT stage trains (docs/visualizer.md).

    Attributes:
        interval_steps: steps of the run between sheets; each is painted from the next checkpoint.
        records: LLaVA-format file with pictures in answers, which no source trains on.
        image_root: folder that its paths are relative to.
        visualizer: folder of a visualizer that was trained on this model's encoder.
        num_pictures: on a sheet.
    """

    interval_steps: int
    records: str
    image_root: str
    visualizer: str
    num_pictures: int = 8

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        return not_positive(self, "interval_steps", "num_pictures")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A recipe, resolved.

    Attributes:
        name: of the run; the default workdir is runs/NAME.
        stages: in order; only what was imported and never trained has none.
        seed: of initialisation, sample order and augmentation.
        pictures: what is painted while it trains; None: nothing.
        log_interval_steps: steps between lines on the terminal (metrics.jsonl has every step).
    """

    name: str
    seed: int = 0
    model: ModelConfig
    tokenizer: TokenizerConfig
    stages: tuple[StageConfig, ...]
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    pictures: PicturesConfig | None = None
    log_interval_steps: int = 20

    @property
    def last_data(self) -> DataConfig:
        """The data of the last stage, or the default: how images are shown."""
        return self.stages[-1].data if self.stages else DataConfig(sources=())

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        found = not_positive(self, "log_interval_steps")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            found.append(f"stages={names} has a name twice")
        tokens = self.model.visual_tokens
        if self.pictures is not None and self.model.vision_head == "none":
            found.append("pictures is set, but model.vision_head is 'none': nothing is predicted")
        for stage in self.stages:
            data = stage.data
            if stage.objective == "contrastive" and self.model.contrastive_dim is None:
                found.append(
                    f"stages.{stage.name}.objective is 'contrastive', but "
                    "model.contrastive_dim is not set"
                )
            if stage.objective == "vpit" and data.max_images > 0:
                if data.max_seq_len < tokens.num_tokens + 4:
                    found.append(
                        f"stages.{stage.name}.data.max_seq_len={data.max_seq_len} cannot hold one "
                        f"image of {tokens.num_tokens} tokens and its conversation"
                    )
            if stage.objective == "vpit" and self.model.vision_head == "none":
                if stage.loss.visual_weight:
                    found.append(
                        f"stages.{stage.name}.loss.visual_weight={stage.loss.visual_weight}, but "
                        "model.vision_head is 'none', so that no visual token is predicted: set it "
                        "to 0, or give the model a head"
                    )
            if data.is_anyres:
                found += [
                    f"stages.{stage.name}.data.image_geometry={data.image_geometry!r}, but {why}"
                    for why in _no_anyres(self.model)
                ]
            if stage.frozen_dtype == "bfloat16" and self.model.dtype == "float32":
                found.append(
                    f"stages.{stage.name}.frozen_dtype is 'bfloat16', but model.dtype is "
                    "'float32': frozen parameters would be rounded for products that are not"
                )
            if stage.loss.visual == "softmax" and tokens.softmax_temperature is None:
                found.append(
                    f"stages.{stage.name}.loss.visual is 'softmax', but "
                    "model.visual_tokens.softmax_temperature is not set"
                )
        return found


def _no_anyres(model: ModelConfig) -> list[str]:
    """Returns why a model cannot read views of images, one half of a sentence each."""
    found, num_tokens = [], model.visual_tokens.num_tokens
    if not model.image_newline:
        found.append("the model has no newline vector: set model.image_newline=True")
    if round(num_tokens**0.5) ** 2 != num_tokens:
        found.append(
            f"model.visual_tokens.num_tokens={num_tokens} is no square of patches: set it to one "
            "(CLIP: without the class token, vision.cls_policy='patch')"
        )
    return found
