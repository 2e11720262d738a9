"""The frozen encoder of an exported MetaMorph: pictures -> visual tokens, while training runs.

    FOLDER/config.json, model.safetensors (or its index): of `python -m metamorph_jax.convert`

Only the tower's tensors are read. Features that were computed once (`cache_features`) cost less.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from metamorph_jax.errors import UserError
from metamorph_jax.hub.remote.configuration_metamorph import MetaMorphConfig
from metamorph_jax.hub.remote.vision_metamorph import MetaMorphVisionTower, resize_tokens
from metamorph_jax.typing import Float, Shaped
from metamorph_jax.visualizer.schema import VisualizerConfig

_TOWER = re.compile(r"(?:^|\.)vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?(.+)")
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class FrozenEncoder(nn.Module):
    """The tower and what happens to its tokens before anyone uses them, in float32.

    Args:
        folder: an exported MetaMorph.
        config: of the visualizer that will read the tokens.

    Attributes:
        image_size: side of the pictures that it takes.

    Raises:
        UserError: the folder is no such export, or its tokens do not fit `config`.
    """

    def __init__(self, folder: Path, config: VisualizerConfig):
        super().__init__()
        self._config = _read_config(folder)
        vision = self._config.vision_config
        found = (self._config.num_image_tokens, vision.hidden_size)
        if found != (config.num_tokens, config.token_dim):
            raise UserError(
                f"{folder}: {found[0]} visual tokens of width {found[1]} per picture, but the "
                f"recipe has config.model.num_tokens={config.num_tokens}, "
                f"token_dim={config.token_dim}"
            )
        _check_view(folder, config.view)
        self.image_size: int = vision.image_size
        pixels = _read_json(folder / "preprocessor_config.json", optional=True)
        for name, default in (("image_mean", [0.5] * 3), ("image_std", [0.5] * 3)):
            values = torch.tensor(pixels.get(name, default))
            self.register_buffer(name, rearrange(values, "rgb -> rgb 1 1"))
        self.tower = MetaMorphVisionTower(vision, self._config.num_vision_blocks)
        _load_tower(self.tower, folder)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, pictures: Shaped[Tensor, "B height width 3"]) -> Float[Tensor, "B P E"]:
        """Returns the visual tokens of uint8 pictures of the tower's size.

        **Source:** the exported model's `encode_images`.
        """
        pixels = rearrange(pictures, "B height width rgb -> B rgb height width").float() / 255
        tokens = self.tower((pixels - self.image_mean) / self.image_std)
        if self._config.image_token_reduction == "interpolation":
            tokens = resize_tokens(tokens, self._config.num_image_tokens)
        return F.normalize(tokens, dim=-1, eps=1e-12) if self._config.normalize_vision else tokens


def _check_view(folder: Path, view: str) -> None:
    """Compares what the model saw of pictures that are not square with the recipe."""
    file = folder / "processor_config.json"
    geometry = _read_json(file, optional=True).get("image_geometry", "square")
    fitting = {"square": ("squash", "same_crop"), "pad": ("pad", "same_crop")}
    if view not in (known := fitting.get(geometry, ("same_crop",))):
        raise UserError(
            f"{file}: its model saw pictures with image_geometry={geometry!r}, but "
            f"config.model.view={view!r} shows them otherwise; use {' or '.join(map(repr, known))}"
        )


def _read_config(folder: Path) -> MetaMorphConfig:
    """Returns the configuration of an exported MetaMorph."""
    values = _read_json(folder / "config.json")
    if values.get("model_type") != MetaMorphConfig.model_type:
        raise UserError(
            f"{folder}/config.json: model_type={values.get('model_type')!r}, expected "
            f"{MetaMorphConfig.model_type!r}; export one with python -m metamorph_jax.convert"
        )
    try:
        return MetaMorphConfig.from_dict(values)
    except ValueError as error:
        raise UserError(f"{folder}/config.json: {error}") from None


def _read_json(file: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not file.is_file():
        return {}
    try:
        return json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; an exported MetaMorph was expected") from None
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error})") from None


def _load_tower(tower: MetaMorphVisionTower, folder: Path) -> None:
    """Copies the tower's tensors from a folder, all of them or none."""
    names = [_SINGLE]
    if (folder / _INDEX).is_file():
        names = sorted(set(_read_json(folder / _INDEX)["weight_map"].values()))
    stored = dict(_tower_tensors(folder / name for name in names))
    wanted = tower.state_dict()
    unfit = [
        name
        for name in sorted(wanted)
        if name not in stored or stored[name].shape != wanted[name].shape
    ]
    if unfit:
        raise UserError(
            f"{folder}: {len(unfit)} tensors of the vision tower are missing or of another shape: "
            f"{unfit[:3]}"
        )
    tower.load_state_dict({name: stored[name] for name in wanted})


def _tower_tensors(files: Iterable[Path]) -> Iterable[tuple[str, Tensor]]:
    """Yields the tower's tensors by their names within it."""
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():
                    if match := _TOWER.search(name):
                        yield match.group(1), opened.get_tensor(name)
        except FileNotFoundError:
            raise UserError(f"{file}: no such file; safetensors were expected") from None
        except SafetensorError as error:
            raise UserError(f"{file}: not a whole safetensors file ({error})") from None
