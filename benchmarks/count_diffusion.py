"""FLOPs of one picture's training step, by networks; counted on shapes, without any weights."""

import dataclasses

import torch
from random_diffusion import Size, create_parts, run_config
from torch.utils.flop_counter import FlopCounterMode

from metamorph_jax.hub.remote.configuration_metamorph import MetaMorphConfig
from metamorph_jax.hub.remote.vision_metamorph import MetaMorphVisionTower
from metamorph_jax.visualizer.model import Visualizer


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of one picture.

    Attributes:
        tower: the frozen encoder of visual tokens.
        vae: the frozen encoder of latents.
        update: forward and backward pass of what is trained.
    """

    tower: int
    vae: int
    update: int

    @property
    def frozen_share(self) -> float:
        """The share that keeping features and latents saves."""
        return (self.tower + self.vae) / (self.tower + self.vae + self.update)


def count_flops(size: Size) -> Flops:
    """Returns what a step on live pictures costs, products of attention included.

    On the meta device, since torch's counter does not know the attention kernel of CPUs.
    """
    side, latent_side = size.tower["image_size"], run_config(size, 1).model.latents.size
    with torch.device("meta"):
        parts = create_parts(size)
        visualizer = Visualizer(run_config(size, 1).model, parts)
        vision = MetaMorphConfig(
            vision_config=size.tower, image_token_id=1, image_start_token_id=2, image_end_token_id=3
        )
        tower = MetaMorphVisionTower(vision.vision_config, vision.num_vision_blocks)
        seen, square = torch.empty(1, 3, side, side), torch.empty(2 * (size.picture_size,))
        noisy = torch.empty(1, 4, latent_side, latent_side)
        tokens = torch.empty(1, size.num_tokens, size.tower["hidden_size"])
        with FlopCounterMode(display=False) as of_tower, torch.no_grad():
            tower(seen)
        with FlopCounterMode(display=False) as of_vae, torch.no_grad():
            parts.vae.encode(square.expand(1, 3, -1, -1))
        with FlopCounterMode(display=False) as of_update:
            context = visualizer.condition(tokens)
            visualizer(noisy, torch.zeros(1), context).sum().backward()
    counters = (of_tower, of_vae, of_update)
    return Flops(*(counter.get_total_flops() for counter in counters))
