"""Sampling against diffusers' pipeline called on its own, and against the formulas written out."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler
from diffusers import StableDiffusionPipeline as Theirs
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

from metamorph_jax.errors import UserError
from metamorph_jax.visualizer import sampling
from metamorph_jax.visualizer.model import Visualizer
from metamorph_jax.visualizer.order import make_generator
from metamorph_jax.visualizer.parts import load_parts
from metamorph_jax.visualizer.schema import DiffusionConfig
from tests import tolerances
from tests.safety_checker import write_safety
from tests.visualizer_files import MODEL, SD_MODEL, write_stable_diffusion

# Products of (1 - beta), betas in a line from 1e-4 to 0.02.
ALPHAS = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))).float()
TOKENS = torch.randn((3, 4, 6), generator=make_generator(0))


def pixel_visualizer() -> Visualizer:
    torch.manual_seed(0)
    diffusion = DiffusionConfig(prediction_type="v_prediction")
    return Visualizer(dataclasses.replace(MODEL, diffusion=diffusion)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def visualizer(folder):
    torch.manual_seed(0)
    return Visualizer(SD_MODEL, load_parts(folder, SD_MODEL)).eval()


def sample(visualizer, tokens, *, scheduler=None, **settings):
    """Returns latents."""
    sampler = sampling.create_sampler(visualizer, scheduler)
    pipeline = sampling.create_pipeline(visualizer, sampler)
    size = visualizer.config.latents.size * pipeline.vae_scale_factor
    with torch.inference_mode():
        context = visualizer.condition(tokens)
        return sampling.sample(pipeline, context, side=size, **settings).images


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (None, PNDMScheduler),
        ("DDIMScheduler", DDIMScheduler),
        ("DPMSolverMultistepScheduler", DPMSolverMultistepScheduler),
    ],
)
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_latents_are_those_of_diffusers_own_pipeline(visualizer, folder, name, kind, guidance):
    found = sample(
        visualizer, TOKENS, scheduler=name, guidance=guidance, num_steps=4, seeds=[5, 6, 7]
    )
    pipeline = Theirs(
        vae=visualizer.vae,
        text_encoder=None,
        tokenizer=None,
        unet=visualizer.unet,
        scheduler=kind.from_pretrained(folder / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with torch.inference_mode():
        embeddings = visualizer.condition(TOKENS)
        expected = pipeline(
            prompt_embeds=embeddings,
            negative_prompt_embeds=torch.zeros(3, 5, 8),
            guidance_scale=guidance,
            num_inference_steps=4,
            generator=[torch.Generator().manual_seed(seed) for seed in (5, 6, 7)],
            output_type="latent",
        ).images
    assert torch.equal(found, expected)
    assert found.shape == (3, 4, 8, 8)


def ddim(model, guidance, num_steps, seed):
    """Returns what deterministic DDIM paints, for velocity and one seed."""
    stride = 1000 // num_steps
    latents = torch.randn((1, 4, 4), generator=torch.Generator().manual_seed(seed))[None]
    context = model.condition(TOKENS[:1])
    for timestep in range(999, -1, -stride):
        before = ALPHAS[timestep - stride] if timestep >= stride else torch.tensor(1.0)
        now = ALPHAS[timestep]
        steps = torch.tensor([timestep])
        free = model.unet(latents, steps, torch.zeros_like(context)).sample
        bound = model.unet(latents, steps, context).sample
        velocity = free + guidance * (bound - free)
        clean = now.sqrt() * latents - (1 - now).sqrt() * velocity
        epsilon = now.sqrt() * velocity + (1 - now).sqrt() * latents
        clean = clean.clamp(-1, 1)
        latents = before.sqrt() * clean + (1 - before).sqrt() * epsilon
    return latents


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_pixels_are_sampled_by_ddim_from_the_noisiest_step(guidance):
    model = pixel_visualizer()
    found = sample(model, TOKENS[:1], guidance=guidance, num_steps=5, seeds=[7])
    with torch.inference_mode():
        expected = ddim(model, guidance, 5, 7)
    assert (found - expected).abs().max() <= tolerances.DIFFUSION_SAMPLE


def test_a_picture_depends_on_its_own_seed_only():
    model = pixel_visualizer()
    together = sample(model, TOKENS, guidance=1.0, num_steps=3, seeds=[3, 4, 5])
    alone = sample(model, TOKENS[1:2], guidance=1.0, num_steps=3, seeds=[4])
    assert (together[1:2] - alone).abs().max() <= tolerances.DIFFUSION_SAMPLE
    other = sample(model, TOKENS[1:2], guidance=1.0, num_steps=3, seeds=[5])
    assert (other - alone).abs().max() > 0.01


def test_unknown_scheduler_is_told_with_the_nearest_names(visualizer):
    with pytest.raises(UserError, match=r"scheduler=DDIMSheduler: .*did you mean DDIMScheduler"):
        sampling.create_sampler(visualizer, "DDIMSheduler")


def test_safety_checker_is_there_if_the_folder_has_one(tmp_path):
    assert sampling.load_safety(tmp_path) is None
    write_safety(tmp_path)
    safety = sampling.load_safety(tmp_path)
    assert isinstance(safety.checker, StableDiffusionSafetyChecker)
    (tmp_path / "feature_extractor").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"feature_extractor: no such folder.*no_safety_checker"):
        sampling.load_safety(tmp_path)


def test_pickled_safety_checker_is_refused(tmp_path):
    write_safety(tmp_path)
    weights = tmp_path / "safety_checker" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(UserError, match=r"safety_checker could not be loaded.*no pickles"):
        sampling.load_safety(tmp_path)
