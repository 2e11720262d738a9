"""Stable Diffusion folders in diffusers' layout: what the visualizer takes from them.

    FOLDER/unet/         config.json, and weights to start from
           vae/          config.json and weights; frozen
           scheduler/    scheduler_config.json
           safety_checker/, feature_extractor/    where there are some: painting uses them

Weights are diffusion_pytorch_model.safetensors (or ....fp16.safetensors). A run keeps a copy of all
but the U-Net's weights beside its checkpoints, so that it needs the folder no more.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel

from metamorph_jax.errors import UserError
from metamorph_jax.visualizer.manifest import (
    MANIFEST_FILE,
    find_damage,
    read_manifest,
    whole_folder,
)
from metamorph_jax.visualizer.schema import VisualizerConfig

UNET_CONFIG = "unet/config.json"
VAE_FOLDER = "vae"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_WEIGHTS_FP16 = "diffusion_pytorch_model.fp16.safetensors"
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
Model = TypeVar("Model", bound=ModelMixin)
_FOR_PAINTING = ("safety_checker", "feature_extractor")


@dataclasses.dataclass(frozen=True)
class Parts:
    """The frozen parts of a Stable Diffusion folder, checked against a recipe.

    Attributes:
        folder: where they are.
        unet_config: diffusers' configuration of the U-Net; None where the recipe has its sizes.
        scheduler_config: diffusers' configuration of the noise process.
        vae: pictures <-> latents, in float32 and evaluation mode.
    """

    folder: Path
    unet_config: dict[str, Any] | None
    scheduler_config: dict[str, Any]
    vae: AutoencoderKL

    @property
    def vae_fingerprint(self) -> str:
        """SHA-256 of the VAE's weights in a kept copy."""
        return str(read_manifest(self.folder)[f"{VAE_FOLDER}/{_WEIGHTS}"]["sha256"])


def load_parts(folder: Path, config: VisualizerConfig) -> Parts:
    """Returns the frozen parts in a Stable Diffusion folder, or in a copy that a run keeps.

    Raises:
        UserError: a part is missing, damaged, a pickle, or does not fit `config`; names the file
            and the numbers.
    """
    if not folder.is_dir():
        what = "a file" if folder.exists() else "no such folder"
        raise UserError(
            f"{folder}: {what}; a Stable Diffusion folder in diffusers' layout (unet/, vae/, "
            "scheduler/, all safetensors) was expected"
        )
    if (folder / MANIFEST_FILE).exists() and (damage := find_damage(folder)):
        raise UserError(f"{folder}: {damage}; delete it to have it copied again")
    unet_config = None
    if config.unet is None:
        unet_config = _read_json(folder / UNET_CONFIG)
        _check_unet(unet_config, folder / UNET_CONFIG, config)
    scheduler_config = _read_json(folder / SCHEDULER_CONFIG)
    _check_scheduler(scheduler_config, folder / SCHEDULER_CONFIG, config)
    vae_config = _read_json(folder / VAE_FOLDER / "config.json", "the VAE (vae/)")
    _check_vae(vae_config, folder / VAE_FOLDER / "config.json", config)
    vae = _load_model(AutoencoderKL, folder / VAE_FOLDER)
    return Parts(folder, unet_config, scheduler_config, vae.requires_grad_(False).eval())


def load_unet_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the U-Net's weights in a Stable Diffusion folder, in float32.

    Raises:
        UserError: they are missing, incomplete or a pickle.
    """
    return _load_model(UNet2DConditionModel, folder / "unet").state_dict()


def keep_parts(source: Parts, target: Path) -> None:
    """Copies what a trained visualizer needs of a Stable Diffusion folder; safetensors only.

    The VAE is written under diffusers' present names, whatever names it came with.
    """
    with whole_folder(target) as folder:
        for name, values in (
            (UNET_CONFIG, source.unet_config),
            (SCHEDULER_CONFIG, source.scheduler_config),
        ):
            if values is not None:
                (folder / name).parent.mkdir()
                (folder / name).write_text(json.dumps(values, indent=1) + "\n", "utf-8")
        source.vae.save_pretrained(folder / VAE_FOLDER, safe_serialization=True)
        for name in _FOR_PAINTING:
            if (source.folder / name).is_dir():
                ignored = shutil.ignore_patterns(*(f"*{suffix}" for suffix in PICKLES))
                shutil.copytree(source.folder / name, folder / name, ignore=ignored)


def _read_json(file: Path, what: str = "") -> dict[str, Any]:
    """Returns a configuration file."""
    if not file.is_file():
        raise UserError(
            f"{file}: no such file{f': {what} is missing' if what else ''}; a Stable Diffusion "
            "folder in diffusers' layout was expected"
        )
    try:
        values = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: a JSON object was expected")
    return values


def _check_unet(values: dict[str, Any], file: Path, config: VisualizerConfig) -> None:
    """Compares the folder's U-Net with the recipe."""
    latents = config.latents
    width = values.get("cross_attention_dim")
    if width != config.context_dim:
        raise UserError(
            f"{file}: its cross-attention reads width {width}, but the projector's output has "
            f"config.model.context_dim={config.context_dim}; set that to {width}"
        )
    if values.get("in_channels") != latents.channels:
        raise UserError(
            f"{file}: in_channels={values.get('in_channels')}, but the recipe has "
            f"config.model.latents.channels={latents.channels}"
        )
    halvings = len(values.get("block_out_channels", ())) - 1
    if latents.size % 2 ** max(halvings, 0):
        raise UserError(
            f"{file}: it halves latents {halvings} times, which config.model.latents.size="
            f"{latents.size} does not allow"
        )


def _check_vae(values: dict[str, Any], file: Path, config: VisualizerConfig) -> None:
    """Compares the folder's VAE with the recipe."""
    latents = config.latents
    size = latents.picture_size // 2 ** (len(values.get("block_out_channels", ())) - 1)
    found = (values.get("latent_channels", 4), size)
    if found != (latents.channels, latents.size):
        raise UserError(
            f"{file}: it makes {found[0]} channels of {size}x{size} from pictures of "
            f"{latents.picture_size} pixels, but the recipe has config.model.latents.channels="
            f"{latents.channels}, size={latents.size}"
        )


def _check_scheduler(values: dict[str, Any], file: Path, config: VisualizerConfig) -> None:
    """Compares the folder's noise process with the recipe."""
    found = {"prediction_type": "epsilon"} | values
    wanted = dataclasses.asdict(config.diffusion)
    differing = [
        f"{name}={found.get(name)!r} there, {value!r} in the recipe"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if differing:
        raise UserError(
            f"{file}: another noise process than config.model.diffusion: {'; '.join(differing)}"
        )


def _load_model(cls: type[Model], folder: Path) -> Model:
    """Returns a model of diffusers with every weight from `folder`, in float32."""
    weights = folder / _WEIGHTS
    variant = None
    if not weights.is_file() and (folder / _WEIGHTS_FP16).is_file():
        weights, variant = folder / _WEIGHTS_FP16, "fp16"
    if not weights.is_file():
        pickles = [path.name for path in sorted(folder.glob("*")) if path.suffix in PICKLES]
        told = f", only pickles ({', '.join(pickles)}), which are not read" if pickles else ""
        raise UserError(f"{weights}: no such file{told}; weights as safetensors were expected")
    try:
        model, info = cls.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            variant=variant,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{weights}: not the weights of {folder}/config.json ({error})") from None
    problems = {name: found for name, found in info.items() if found}
    if problems:
        told = ", ".join(f"{len(found)} {name} {found[:3]}" for name, found in problems.items())
        raise UserError(f"{weights}: not the weights that {folder}/config.json describes: {told}")
    return model
