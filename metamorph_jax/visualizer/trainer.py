"""One update of the visualizer, and what is saved and restored around it.

The order of things (logging, saving, stopping) is in train.py.
"""

import math
from pathlib import Path

import torch

from metamorph_jax.config.loading import to_dict
from metamorph_jax.errors import UserError
from metamorph_jax.visualizer.checkpoint import (
    WEIGHTS_FILE,
    TrainingState,
    load_training_state,
    load_weights,
)
from metamorph_jax.visualizer.dataset import PictureData, noise_generator
from metamorph_jax.visualizer.diffusion import create_noise_scheduler, diffusion_loss, draw_noise
from metamorph_jax.visualizer.model import Visualizer
from metamorph_jax.visualizer.parts import Parts, load_unet_weights
from metamorph_jax.visualizer.schedule import make_multiplier
from metamorph_jax.visualizer.schema import VisualizerRunConfig

_MOMENTS = ("exp_avg", "exp_avg_sq")
# Recipe keys that may change between a run and its continuation.
_FREE = ("training.total_steps", "checkpoint.interval_steps", "checkpoint.keep", "name")
_FREE += ("log_interval_steps",)


class Trainer:
    """Model, optimiser and step counter.

    Attributes:
        visualizer: the model.
        step: updates done; batch, noise and learning rate of the next one follow from it.
    """

    def __init__(self, config: VisualizerRunConfig, data: PictureData, parts: Parts | None = None):
        torch.manual_seed(config.seed)  # initial weights only; all later noise has its own
        self.visualizer = Visualizer(config.model, parts).train()
        self.visualizer.encoder_fingerprint = data.encoder_fingerprint
        self.step = 0
        self._config, self._data = config, data
        self._scheduler = create_noise_scheduler(config.model.diffusion)
        self._multiplier = make_multiplier(config.training)
        training = config.training
        self._optimizer = torch.optim.AdamW(
            self.visualizer.parameters(),
            lr=training.learning_rate,
            betas=(training.b1, training.b2),
            eps=training.eps,
            weight_decay=training.weight_decay,
            fused=True,
        )

    def update(self) -> dict[str, float]:
        """Makes one update; returns its loss, gradient norm and learning rate.

        Raises:
            UserError: loss or gradients are not finite; nothing was changed.
        """
        training, model = self._config.training, self._config.model
        seed = self._config.seed
        rows = self._data.batch_indices(seed, self.step, training.batch_size)
        latents, tokens = self._data.latents[rows], self._data.tokens[rows]
        generator = noise_generator(seed, self.step)
        noise = draw_noise(latents, model.diffusion, training.condition_drop, generator)
        loss = diffusion_loss(self.visualizer, self._scheduler, latents, tokens, noise)
        self._optimizer.zero_grad()
        loss.backward()
        limit = math.inf if training.max_grad_norm is None else training.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(self.visualizer.parameters(), limit)
        learning_rate = training.learning_rate * self._multiplier(self.step)
        values = {
            "loss": loss.item(),
            "grad_norm": norm.item(),
            "learning_rate": learning_rate,
        }
        if not math.isfinite(values["loss"] + values["grad_norm"]):
            raise UserError(
                f"step {self.step + 1}: loss {values['loss']}, gradient norm "
                f"{values['grad_norm']} at learning rate {learning_rate:.3g}; the update was not "
                "made. Try a lower --config.training.learning_rate or a longer warm-up"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self.step += 1
        return values

    def state(self) -> TrainingState:
        """Returns what a later process needs to go on exactly here."""
        tensors = {}
        for name, parameter in self.visualizer.named_parameters():
            for moment in _MOMENTS:
                value = self._optimizer.state[parameter].get(moment, torch.zeros_like(parameter))
                tensors[f"{moment}/{name}"] = value.detach().contiguous()
        return TrainingState(self.step, tensors, to_dict(self._config), self._data.fingerprint)

    def start(self) -> None:
        """Begins a new run: a Stable Diffusion folder's U-Net replaces the fresh one."""
        if self._config.model.unet is None:
            folder = Path(self._config.stable_diffusion)
            self.visualizer.unet.load_state_dict(load_unet_weights(folder))

    def restore(self, checkpoint: Path) -> None:
        """Continues from `checkpoint`.

        Raises:
            UserError: it was trained with another recipe or on other pictures.
        """
        state = load_training_state(checkpoint)
        self._check_same_run(checkpoint, state)
        load_weights(self.visualizer, checkpoint / WEIGHTS_FILE)
        self.step = state.step
        for name, parameter in self.visualizer.named_parameters():
            moments = {moment: state.tensors[f"{moment}/{name}"] for moment in _MOMENTS}
            self._optimizer.state[parameter] = {"step": torch.tensor(float(state.step))} | moments

    def _check_same_run(self, checkpoint: Path, state: TrainingState) -> None:
        """Compares recipe and data of a checkpoint with those of this run."""
        before, now = _leaves(state.recipe), _leaves(to_dict(self._config))
        changed = [
            f"config.{key}: {before.get(key)!r} there, {now.get(key)!r} here"
            for key in sorted(before.keys() | now.keys())
            if key not in _FREE and before.get(key) != now.get(key)
        ]
        if state.data_fingerprint != self._data.fingerprint:
            changed.append("the features or their image paths are others")
        if changed:
            raise UserError(
                f"{checkpoint} cannot be continued by this run:\n  - "
                + "\n  - ".join(changed)
                + "\nUse another --out, or --resume=never to set its checkpoints aside"
            )


def _leaves(values: dict, path: str = "") -> dict[str, object]:
    """Returns nested dicts as {dotted path: value}; tuples as lists, like JSON."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _leaves(value, f"{path}{key}.")
        else:
            flat[path + key] = list(value) if isinstance(value, tuple) else value
    return flat
