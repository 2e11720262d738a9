"""Stable Diffusion folders: what is taken, what is refused, and a run that needs them no more."""

import dataclasses
import json
import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from metamorph_jax.config.loading import to_dict
from metamorph_jax.errors import UserError
from metamorph_jax.visualizer.checkpoint import (
    TrainingState,
    load_visualizer,
    open_parts,
    save_checkpoint,
)
from metamorph_jax.visualizer.latents import create_latents
from metamorph_jax.visualizer.model import Visualizer
from metamorph_jax.visualizer.parts import load_parts, load_unet_weights
from tests.visualizer_files import RUN, SD_MODEL, write_stable_diffusion

PICTURES = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
TENSORS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "sd")


def save(run, folder, ema=None):
    """Saves a visualizer with the folder's U-Net as step 1; returns it."""
    model = Visualizer(SD_MODEL, open_parts(run, folder, SD_MODEL))
    model.unet.load_state_dict(load_unet_weights(folder))
    state = TrainingState(1, {}, to_dict(RUN), "", ema or {})
    save_checkpoint(run, model, state, keep=2)
    return model


def test_run_is_self_contained(folder, tmp_path):
    (folder / "safety_checker").mkdir()
    for name in ("model.safetensors", "pytorch_model.bin"):
        (folder / "safety_checker" / name).write_bytes(b"x")
    latents = create_latents(SD_MODEL.latents, load_parts(folder, SD_MODEL).vae).encode(PICTURES)
    save(tmp_path / "run", folder)
    shutil.move(folder, tmp_path / "elsewhere")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    loaded = load_visualizer(tmp_path / "moved")
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "elsewhere/unet")
    for name, value in unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], value)
    assert torch.equal(create_latents(SD_MODEL.latents, loaded.vae).encode(PICTURES), latents)
    assert loaded.scheduler_config["_class_name"] == "PNDMScheduler"
    assert not any("vae" in name for name in loaded.state_dict())
    assert not loaded.training
    kept = [path.name for path in (loaded.parts.folder / "safety_checker").iterdir()]
    assert kept == ["model.safetensors"]
    assert len(loaded.parts.vae_fingerprint) == 64


def test_averages_are_what_is_painted_with(folder, tmp_path):
    name = "unet.conv_in.bias"
    save(tmp_path / "run", folder, {name: torch.full((8,), 7.0)})
    loaded = load_visualizer(tmp_path / "run").state_dict()
    assert loaded[name].tolist() == [7.0] * 8
    own = load_file(tmp_path / "run/checkpoints/00000001/model.safetensors")
    assert torch.equal(loaded["unet.conv_out.bias"], own["unet.conv_out.bias"])


def test_vae_latents_are_scaled_means_and_decode_to_pictures(folder):
    vae = load_parts(folder, SD_MODEL).vae
    codec = create_latents(SD_MODEL.latents, vae)
    latents = codec.encode(PICTURES)
    pixels = PICTURES.permute(0, 3, 1, 2).float() / 127.5 - 1
    expected = vae.encode(pixels).latent_dist.mean * 0.18215
    assert torch.allclose(latents, expected)
    assert latents.shape == (2, 4, 8, 8)
    pictures = codec.decode(latents)
    assert (pictures.shape, pictures.dtype) == (PICTURES.shape, torch.uint8)


def test_half_precision_files_are_read_too(folder):
    for part in ("vae", "unet"):
        file = folder / part / TENSORS
        halves = {name: value.half() for name, value in load_file(file).items()}
        file.unlink()
        save_file(
            halves, folder / part / "diffusion_pytorch_model.fp16.safetensors", {"format": "pt"}
        )
    assert load_parts(folder, SD_MODEL).vae.dtype == torch.float32
    assert load_unet_weights(folder)["conv_in.bias"].dtype == torch.float32


def changed(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def pickled(folder):
    (folder / "vae" / TENSORS).rename(folder / "vae/diffusion_pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: shutil.rmtree(f), "sd: no such folder"),
        (lambda f: shutil.rmtree(f / "vae"), "vae/config.json: no such file: the VAE (vae/)"),
        (lambda f: (f / "vae" / TENSORS).unlink(), f"vae/{TENSORS}: no such file"),
        (pickled, "only pickles (diffusion_pytorch_model.bin), which are not read"),
        (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json: no such file"),
        (lambda f: (f / "unet/config.json").write_text("{"), "unet/config.json: not JSON"),
        (
            lambda f: changed(f / "unet/config.json", cross_attention_dim=1024),
            "unet/config.json: its cross-attention reads width 1024, but the projector's output "
            "has config.model.context_dim=8",
        ),
        (lambda f: changed(f / "unet/config.json", in_channels=9), "in_channels=9, but the recipe"),
        (lambda f: changed(f / "vae/config.json", latent_channels=16), "16 channels of 8x8"),
        (
            lambda f: changed(f / "scheduler/scheduler_config.json", beta_end=0.02),
            "beta_end=0.02 there, 0.012 in the recipe",
        ),
        (
            lambda f: save_file({"x": torch.ones(1)}, f / "vae" / TENSORS, {"format": "pt"}),
            f"vae/{TENSORS}: not the weights that",
        ),
        (lambda f: (f / "vae" / TENSORS).write_bytes(b"\x80\x04K\x01."), f"vae/{TENSORS}: not the"),
    ],
)
def test_what_does_not_fit_is_told(folder, damage, told):
    damage(folder)
    with pytest.raises(UserError) as error:
        load_parts(folder, SD_MODEL)
    assert told in str(error.value)


def test_damage_of_the_kept_copy_is_told(folder, tmp_path):
    save(tmp_path / "run", folder)
    vae = tmp_path / "run/checkpoints/stable_diffusion/vae" / TENSORS
    content = bytearray(vae.read_bytes())
    content[-1] ^= 1
    vae.write_bytes(content)
    with pytest.raises(UserError, match=f"vae/{TENSORS} is not what was written"):
        load_visualizer(tmp_path / "run")


def test_unet_of_the_recipe_needs_none_in_the_folder(folder):
    shutil.rmtree(folder / "unet")
    config = dataclasses.replace(SD_MODEL, unet=RUN.model.unet)
    model = Visualizer(config, load_parts(folder, config))
    assert model.unet.config.in_channels == 4
