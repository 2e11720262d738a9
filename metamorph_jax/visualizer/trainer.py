"""One update of the visualizer, and what is saved and restored around it.

The order of things (logging, saving, stopping) is in loop.py; what a batch holds, in feed.py.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor

from metamorph_jax.config.loading import from_dict, to_dict
from metamorph_jax.errors import UserError
from metamorph_jax.typing import Float
from metamorph_jax.visualizer.checkpoint import (
    WEIGHTS_FILE,
    TrainingState,
    load_training_state,
    load_weights,
)
from metamorph_jax.visualizer.diffusion import DiffusionLoss, Noise
from metamorph_jax.visualizer.encoder import FrozenEncoder
from metamorph_jax.visualizer.feed import PictureData, Rows
from metamorph_jax.visualizer.latents import create_latents
from metamorph_jax.visualizer.model import Visualizer
from metamorph_jax.visualizer.parts import Parts, load_unet_weights
from metamorph_jax.visualizer.schedule import make_multiplier
from metamorph_jax.visualizer.schema import VisualizerRunConfig

_MOMENTS = ("exp_avg", "exp_avg_sq")
# Recipe keys that may change between a run and its continuation: they change what is kept, shown or
# kept in memory, and not what is learned.
_FREE = ("training.total_steps", "checkpoint.interval_steps", "checkpoint.keep", "name")
_FREE += ("log_interval_steps", "stable_diffusion", "data.num_workers", "data.max_bad_fraction")
_FREE += ("training.grad_accum_steps", "training.gradient_checkpointing", "training.compile")


class Trainer:
    """Model, optimiser and step counter of one process; processes agree on all three.

    Attributes:
        visualizer: the model.
        step: updates done; batch, noise and learning rate of the next one follow from it.
    """

    def __init__(
        self,
        config: VisualizerRunConfig,
        data: PictureData,
        parts: Parts | None = None,
        encoder: FrozenEncoder | None = None,
        accelerator: Accelerator | None = None,
    ):
        training = config.training
        self._config, self._data = config, data
        self._accelerator = accelerator or Accelerator(mixed_precision=training.mixed_precision)
        self._device = self._accelerator.device
        torch.manual_seed(config.seed)  # initial weights only; all later noise has its own
        self.visualizer = Visualizer(config.model, parts).train().to(self._device)
        self.visualizer.encoder_fingerprint = data.encoder_fingerprint
        self.step = 0
        self._encoder = encoder and encoder.to(self._device)
        self._codec = create_latents(config.model.latents, parts and parts.vae.to(self._device))
        self._multiplier = make_multiplier(training)
        _prepare_unet(self.visualizer, config)
        # Wrapped for data parallelism and mixed precision; shares its weights with `visualizer`.
        self._loss = self._accelerator.prepare_model(
            DiffusionLoss(self.visualizer, training.min_snr_gamma)
        )
        self._trained = {n: p for n, p in self.visualizer.named_parameters() if p.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._trained.values(),
            lr=training.learning_rate,
            betas=(training.b1, training.b2),
            eps=training.eps,
            weight_decay=training.weight_decay,
            fused=True,
        )
        self._averages: EMAModel | None = None
        if training.ema_decay is not None:
            self._averages = EMAModel(self._trained.values(), decay=training.ema_decay)

    def update(self, batch: Sequence[Rows]) -> dict[str, float]:
        """Makes one update; returns its loss, gradient norm and learning rate.

        Args:
            batch: this process's rows, in as many parts as are computed one after the other.

        Raises:
            UserError: loss or gradients are not finite; nothing was changed.
        """
        training = self._config.training
        self._optimizer.zero_grad()
        loss = sum(self._backward(rows, is_last=rows is batch[-1]) for rows in batch)
        norm = self._clip_gradients()
        (loss,), norm = self.add_up([loss]), norm.item()
        learning_rate = training.learning_rate * self._multiplier(self.step)
        if not math.isfinite(loss + norm):
            raise UserError(
                f"step {self.step + 1}: loss {loss}, gradient norm {norm} at learning rate "
                f"{learning_rate:.3g}; the update was not made. Try a lower "
                "--config.training.learning_rate or a longer warm-up"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        if self._averages is not None:
            self._averages.step(self._trained.values())
        self.step += 1
        return {"loss": loss, "grad_norm": norm, "learning_rate": learning_rate}

    def _clip_gradients(self) -> Float[Tensor, ""]:
        """Limits the global norm of the gradients; returns what it was."""
        gradients = [p.grad for p in self._trained.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if (limit := self._config.training.max_grad_norm) is not None:
            torch.nn.utils.clip_grads_with_norm_(self._trained.values(), limit, norm)
        return norm

    @torch.no_grad()
    def evaluate(self, batch: Sequence[Rows]) -> float:
        """Returns the loss of a batch without learning from it."""
        return self.add_up([sum(self._loss_of(rows) for rows in batch)])[0]

    def _loss_of(self, rows: Rows) -> Float[Tensor, ""]:
        """Returns the part that some rows have in the batch's mean error."""
        tokens, latents = self.encode(rows)
        noise = Noise(*(value.to(self._device, non_blocking=True) for value in rows.noise))
        weights = (~rows.is_bad).float().to(self._device) / self._config.training.batch_size
        return self._loss(latents, tokens, noise, weights)

    def _backward(self, rows: Rows, *, is_last: bool) -> Float[Tensor, ""]:
        """Adds the gradients of some rows; returns their part of the batch's mean error."""
        # Gradients are averaged over processes once, after the last part.
        waits = self._accelerator.no_sync(self._loss) if not is_last else nullcontext()
        with waits:
            loss = self._loss_of(rows)
            self._accelerator.backward(loss * self._accelerator.num_processes)
        return loss.detach()

    def encode(
        self, rows: Rows
    ) -> tuple[Float[Tensor, "B P E"], Float[Tensor, "B channels rows columns"]]:
        """Returns visual tokens and latents, through the frozen encoders where none were kept."""
        tokens, latents = rows.tokens, rows.latents
        if tokens is None:
            tokens = self._encoder(rows.seen.to(self._device, non_blocking=True))
        if latents is None:
            latents = self._codec.encode(rows.squares)
        return (
            tokens.to(self._device, non_blocking=True),
            latents.to(self._device, non_blocking=True),
        )

    def add_up(self, numbers: Iterable[float]) -> list[float]:
        """Returns each number, added up over all processes."""
        values = torch.stack([torch.as_tensor(n, dtype=torch.float32) for n in numbers])
        if self._accelerator.num_processes > 1:
            values = self._accelerator.reduce(values.to(self._device), reduction="sum")
        return values.tolist()

    def state(self) -> TrainingState:
        """Returns what a later process needs to go on exactly here."""
        tensors = {}
        for name, parameter in self._trained.items():
            for moment in _MOMENTS:
                value = self._optimizer.state[parameter].get(moment, torch.zeros_like(parameter))
                tensors[f"{moment}/{name}"] = value.detach().contiguous()
        averages = {}
        if self._averages is not None:
            values = (value.contiguous() for value in self._averages.shadow_params)
            averages = dict(zip(self._trained, values, strict=True))
        recipe = to_dict(self._config)
        return TrainingState(self.step, tensors, recipe, self._data.fingerprint, averages)

    def start(self) -> None:
        """Begins a new run: a Stable Diffusion folder's U-Net replaces the fresh one."""
        if self._config.model.unet is None:
            folder = Path(self._config.stable_diffusion)
            self.visualizer.unet.load_state_dict(load_unet_weights(folder))
        self._set_averages(self._trained)

    def restore(self, checkpoint: Path) -> None:
        """Continues from `checkpoint`.

        Raises:
            UserError: it was trained with another recipe or on other pictures.
        """
        state = load_training_state(checkpoint)
        self._check_same_run(checkpoint, state)
        load_weights(self.visualizer, checkpoint / WEIGHTS_FILE)
        self.step = state.step
        for name, parameter in self._trained.items():
            moments = {m: state.tensors[f"{m}/{name}"].to(self._device) for m in _MOMENTS}
            self._optimizer.state[parameter] = {"step": torch.tensor(float(state.step))} | moments
        self._set_averages(state.ema)

    def _set_averages(self, values: dict[str, Tensor]) -> None:
        if self._averages is not None:
            shadows = [values[name].detach().clone().to(self._device) for name in self._trained]
            self._averages.shadow_params = shadows
            self._averages.optimization_step = self.step

    def _check_same_run(self, checkpoint: Path, state: TrainingState) -> None:
        """Compares recipe and data of a checkpoint with those of this run."""
        recipe = to_dict(from_dict(state.recipe, VisualizerRunConfig))  # with keys added since
        before, now = _leaves(recipe), _leaves(to_dict(self._config))
        changed = [
            f"config.{key}: {before.get(key)!r} there, {now.get(key)!r} here"
            for key in sorted(before.keys() | now.keys())
            if key not in _FREE and before.get(key) != now.get(key)
        ]
        if state.data_fingerprint != self._data.fingerprint:
            changed.append("the features or the list of pictures are others")
        if changed:
            raise UserError(
                f"{checkpoint} cannot be continued by this run:\n  - "
                + "\n  - ".join(changed)
                + "\nUse another --out, or --resume=never to set its checkpoints aside"
            )


def _prepare_unet(visualizer: Visualizer, config: VisualizerRunConfig) -> None:
    """Applies what the recipe says about how the U-Net is computed and whether it learns."""
    training, unet = config.training, visualizer.unet
    unet.requires_grad_(training.train_unet)
    if training.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if unet.device.type == "cuda":
        unet.to(memory_format=torch.channels_last)  # what its convolutions are fastest with
    if training.compile:
        unet.compile()


def _leaves(values: dict, path: str = "") -> dict[str, object]:
    """Returns nested dicts as {dotted path: value}; tuples as lists, like JSON."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _leaves(value, f"{path}{key}.")
        else:
            flat[path + key] = list(value) if isinstance(value, tuple) else value
    return flat
