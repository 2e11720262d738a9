"""What a visualizer is made of and how it is trained; the fields are the recipe's keys.

Read strictly by `metamorph_jax.config`; nothing here imports torch, so mistakes answer at once.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """Maps visual tokens of width E to conditioning tokens.

    Attributes:
        mode: `mlp` keeps the number of tokens; `xattn` and `xattnffn` let learned queries read
            them, without and with a feed-forward layer; `transformer` is an encoder for the tokens
            and a decoder for the queries.
        hidden_dim: of `mlp` and `transformer`.
        num_layers: linear layers of `mlp`, attention layers of the others (of encoder and decoder
            each).
        num_heads: of the attention modes.
        num_queries: learned queries (= tokens that come out) of the attention modes.
        use_positions: adds a learned vector per token, because an `mlp` treats all alike and the
            U-Net's cross-attention does not know their order.
    """

    mode: Literal["mlp", "xattn", "xattnffn", "transformer"] = "mlp"
    hidden_dim: int = 2048
    num_layers: int = 2
    num_heads: int = 8
    num_queries: int = 77
    use_positions: bool = False

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        if self.mode == "mlp" and self.num_layers < 2:
            return [f"num_layers={self.num_layers}: an mlp has at least 2"]
        if self.mode == "transformer" and self.hidden_dim % self.num_heads:
            return [f"hidden_dim={self.hidden_dim} is no multiple of num_heads={self.num_heads}"]
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Sizes of diffusers' UNet2DConditionModel.

    Attributes:
        channels: per resolution, finest first; each next one has half the side.
        cross_attention: for each resolution, whether it looks at the conditioning tokens (the
            middle block always does).
        layers_per_block: residual blocks per resolution.
        num_heads: of every attention.
        norm_groups: of the group normalisation; must divide all channels.
    """

    channels: tuple[int, ...]
    cross_attention: tuple[bool, ...]
    layers_per_block: int = 2
    num_heads: int = 8
    norm_groups: int = 32

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        found = []
        if len(self.channels) != len(self.cross_attention):
            found.append(
                f"channels has {len(self.channels)} resolutions, cross_attention "
                f"{len(self.cross_attention)}"
            )
        for name, divisor in (("num_heads", self.num_heads), ("norm_groups", self.norm_groups)):
            if any(count % divisor for count in self.channels):
                found.append(f"channels={self.channels} must be multiples of {name}={divisor}")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentsConfig:
    """What the diffusion works on.

    Attributes:
        kind: `pixels`: the picture itself, in grey, at `size` x `size`; `vae`: what Stable
            Diffusion's autoencoder makes of it.
        size: side of the latents.
        channels: of the latents (4 in Stable Diffusion 1.5).
        picture_size: side of the pictures in pixels, a multiple of `size`. Pictures of other sizes
            are cut and resized for a VAE, and refused for `pixels`.
    """

    kind: Literal["pixels", "vae"] = "pixels"
    size: int
    channels: int = 1
    picture_size: int

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        found = []
        if self.picture_size % self.size:
            found.append(f"picture_size={self.picture_size} is no multiple of size={self.size}")
        if self.kind == "pixels" and self.channels != 1:
            found.append(f"channels={self.channels}: pixels are grey, so 1 was expected")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The noise process.

    Attributes:
        prediction_type: what the U-Net predicts. The paper's `epsilon` weighs the noisiest steps,
            where a picture's layout is decided, least; on small pixel latents `v_prediction` is
            clearly better.
        num_train_timesteps: steps of the process.
        beta_schedule: of diffusers; Stable Diffusion 1.5 has "scaled_linear".
        beta_start: noise variance of the first step.
        beta_end: noise variance of the last step.
    """

    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    num_train_timesteps: int = 1000
    beta_schedule: Literal["linear", "scaled_linear"] = "linear"
    beta_start: float = 0.0001
    beta_end: float = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisualizerConfig:
    """The model: all that `config.json` of a checkpoint says.

    Attributes:
        num_tokens: P, visual tokens per picture.
        token_dim: E, width of a visual token.
        context_dim: width of the conditioning tokens (768 in Stable Diffusion 1.5).
        context_len: conditioning tokens; fewer from the projector are filled up with zero rows
            (77 in Stable Diffusion 1.5).
        unet: sizes of a U-Net with fresh weights; None: it is the Stable Diffusion folder's.
        view: what the encoder sees of a picture that is not square. `squash`: all of it, squeezed,
            as released; `same_crop`: the square in the middle, which is what latents show; `pad`:
            all of it on a square of grey, which latents show, too.
    """

    num_tokens: int
    token_dim: int
    context_dim: int = 768
    context_len: int = 77
    projector: ProjectorConfig = ProjectorConfig()
    unet: UNetConfig | None = None
    latents: LatentsConfig
    diffusion: DiffusionConfig = DiffusionConfig()
    view: Literal["squash", "same_crop", "pad"] = "squash"

    @property
    def num_projected(self) -> int:
        """Tokens that leave the projector."""
        return self.num_tokens if self.projector.mode == "mlp" else self.projector.num_queries

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        found = []
        if self.num_projected > self.context_len:
            found.append(
                f"context_len={self.context_len} cannot hold the {self.num_projected} tokens of "
                "the projector"
            )
        has_queries = self.projector.mode in ("xattn", "xattnffn")
        if has_queries and self.context_dim % self.projector.num_heads:
            found.append(
                f"context_dim={self.context_dim} is no multiple of "
                f"projector.num_heads={self.projector.num_heads}"
            )
        if self.unet is None:
            if self.latents.kind == "pixels":
                found.append("unet: missing; latents.kind='pixels' has a U-Net of its own")
        elif self.latents.size % 2 ** (len(self.unet.channels) - 1):
            found.append(
                f"latents.size={self.latents.size} cannot be halved {len(self.unet.channels) - 1} "
                "times by the U-Net"
            )
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """AdamW, its schedule, what a batch is, and how it is computed.

    Attributes:
        batch_size: pictures of one update, on all processes together.
        grad_accum_steps: parts that a process computes its share of the batch in, one after the
            other; what is learned is the same.
        schedule: see schedule.py; `log_warmup_linear` is the paper's.
        warmup_steps: of any schedule.
        condition_drop: fraction of pictures trained without condition, for guidance.
        max_grad_norm: global norm that gradients are clipped to; None: no clipping.
        train_unet: False: only the projector learns.
        ema_decay: of moving averages of the trained weights, which are what is painted with; None:
            there are none. It begins small: at most (1 + step) / (10 + step).
        min_snr_gamma: limits the weight of nearly clean pictures; None: all weigh the same.
        noise_offset: of noise that is the same all over a picture, for its overall brightness.
        mixed_precision: `bf16` computes in bfloat16; weights and optimiser stay float32.
        gradient_checkpointing: the U-Net keeps fewer activations and computes them again.
        compile: the U-Net goes through torch.compile, which takes minutes at first.
    """

    total_steps: int
    batch_size: int
    learning_rate: float
    schedule: Literal["cosine", "log_warmup_linear", "linear_warmup_constant"] = "log_warmup_linear"
    warmup_steps: int
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float | None = 1.0
    condition_drop: float = 0.1
    grad_accum_steps: int = 1
    train_unet: bool = True
    ema_decay: float | None = None
    min_snr_gamma: float | None = None
    noise_offset: float = 0.0
    mixed_precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = False
    compile: bool = False

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        found = []
        if min(self.total_steps, self.batch_size) < 1:
            found.append(
                f"total_steps={self.total_steps} and batch_size={self.batch_size} must be positive"
            )
        if not 0 <= self.warmup_steps < self.total_steps:
            found.append(
                f"warmup_steps={self.warmup_steps} must be below total_steps={self.total_steps}"
            )
        if not 0 <= self.condition_drop <= 1:
            found.append(f"condition_drop={self.condition_drop} is a fraction, 0 to 1")
        if self.grad_accum_steps < 1 or self.batch_size % self.grad_accum_steps:
            found.append(
                f"batch_size={self.batch_size} is no multiple of grad_accum_steps="
                f"{self.grad_accum_steps}"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            found.append(f"ema_decay={self.ema_decay} must be between 0 and 1")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How pictures are read.

    Attributes:
        num_workers: processes that decode pictures, for each training process; 0: it does so
            itself.
        max_bad_fraction: of all pictures; more bad ones than this stop the run. Fewer are listed
            in `quarantine.jsonl` and left out.
    """

    num_workers: int = 0
    max_bad_fraction: float = 0.001

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        found = []
        if self.num_workers < 0:
            found.append(f"num_workers={self.num_workers} must not be negative")
        if not 0 <= self.max_bad_fraction <= 1:
            found.append(f"max_bad_fraction={self.max_bad_fraction} is a fraction, 0 to 1")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When training state is saved.

    Attributes:
        interval_steps: steps between saves; the end is always saved.
        keep: newest checkpoints kept, at least 2.
    """

    interval_steps: int = 500
    keep: int = 2

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        found = []
        if self.interval_steps < 1:
            found.append(f"interval_steps={self.interval_steps} must be at least 1")
        if self.keep < 2:
            found.append(f"keep={self.keep}: at least 2 are kept for fall-back")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisualizerRunConfig:
    """A visualizer's recipe, resolved.

    Attributes:
        seed: of initial weights, sample order, noise and dropped conditions.
        stable_diffusion: local folder in diffusers' layout, for `latents.kind="vae"`: VAE, noise
            process and, unless the recipe has `model.unet`, the U-Net to start from.
        log_interval_steps: steps between lines on the terminal (metrics.jsonl has every step).
    """

    name: str
    seed: int = 0
    stable_diffusion: str = ""
    model: VisualizerConfig
    data: DataConfig = DataConfig()
    training: TrainingConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_interval_steps: int = 20

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        has_vae = self.model.latents.kind == "vae"
        if has_vae and not self.stable_diffusion:
            return [
                "stable_diffusion: missing; latents.kind='vae' needs a Stable Diffusion folder "
                "(unet/, vae/, scheduler/)"
            ]
        if self.stable_diffusion and not has_vae:
            return ["stable_diffusion is of no use with latents.kind='pixels'"]
        return []
