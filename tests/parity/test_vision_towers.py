"""Our towers against `transformers` SigLIP and CLIP on random small configurations: the hidden
states of the feature layer, and the gradient of every parameter that it depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from metamorph_jax.config.schema_model import VisionConfig
from metamorph_jax.hub import clip, siglip
from metamorph_jax.models.vit import VisionTower
from tests import tolerances
from tests.model_helpers import quick_jit
from tests.parity.torch_models import randomise

HUB = {"siglip": siglip, "clip": clip}
NUM_IMAGES = 2


def random_config(family: str, seed: int) -> VisionConfig:
    rng = np.random.default_rng(seed)
    num_layers, num_heads = int(rng.integers(1, 4)), int(rng.choice([1, 2, 4]))
    return VisionConfig(
        family=family,
        image_size=int(rng.choice([12, 14, 15])),  # 14 and 15 leave pixels over
        patch_size=int(rng.choice([3, 4])),
        num_layers=num_layers,
        num_heads=num_heads,
        embed_dim=num_heads * int(rng.choice([6, 8])),
        mlp_dim=int(rng.choice([20, 32])),
        norm_eps=float(rng.choice([1e-6, 1e-5, 1e-3])),
        feature_layer=[-1, -2, num_layers, max(num_layers - 1, 1), 0, -1][seed % 6],
        cls_policy=["patch", "cls_patch"][seed % 2],
    )


def torch_model(config: VisionConfig, seed: int) -> torch.nn.Module:
    fields = {
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "layer_norm_eps": config.norm_eps,
        "attn_implementation": "eager",
    }
    if config.family == "siglip":
        model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**fields))
    else:
        model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**fields))
    return randomise(model, seed)


def torch_states(model: torch.nn.Module, config: VisionConfig, pixels: np.ndarray):
    """Returns the input of block `feature_layer`, counted explicitly.

    What `output_hidden_states` returns last has changed between releases, so the blocks are run
    here one by one.
    """
    states = model.embeddings(torch.tensor(np.moveaxis(pixels, -1, 1)))
    if config.family == "clip":
        states = model.pre_layrnorm(states)
    count = config.feature_layer
    count = count if count >= 0 else config.num_layers + 1 + count
    for block in model.encoder.layers[:count]:
        states = block(states, None)
    has_cls = config.family == "clip"
    return states[:, 1:] if has_cls and config.cls_policy == "patch" else states


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("family", ["siglip", "clip"])
def test_tower(family, seed):
    config, hub = random_config(family, seed), HUB[family]
    model = torch_model(config, seed)
    rng = np.random.default_rng(seed)
    pixels = rng.normal(size=(NUM_IMAGES, config.image_size, config.image_size, 3)).astype("f4")
    theirs = torch_states(model, config, pixels)
    cotangent = rng.normal(size=theirs.shape).astype("f4") / theirs.numel() ** 0.5
    (theirs * torch.tensor(cotangent)).sum().backward()

    tensors = {name: t.numpy() for name, t in model.state_dict().items()}
    params = jax.tree.map(jnp.asarray, hub.from_hf(tensors, config))
    tower = VisionTower(config, jnp.dtype("float32"), jnp.dtype("float32"))

    def weighted(params):
        states = tower.apply({"params": params}, pixels)
        return jnp.sum(states * cotangent), states

    grads, ours = quick_jit(jax.grad(weighted, has_aux=True))(params)
    theirs = theirs.detach().numpy()
    assert ours.shape == (NUM_IMAGES, config.num_tokens, config.embed_dim)
    assert 0.1 < np.abs(theirs).max() < 10
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerances.PARITY)
    our_grads = hub.to_hf(jax.device_get(grads), config)
    used = {f"vision_model.{n}": p for n, p in model.named_parameters() if p.grad is not None}
    assert set(our_grads) == set(used)
    for name, parameter in used.items():
        np.testing.assert_allclose(
            our_grads[name], parameter.grad, rtol=0, atol=tolerances.PARITY, err_msg=name
        )


def test_configurations_cover_the_options():
    configs = [random_config("clip", seed) for seed in range(6)]
    used = [c.num_used_layers for c in configs]
    assert 0 in used
    assert max(used) >= 2
    assert any(c.num_used_layers < c.num_layers for c in configs)
    assert any(c.image_size % c.patch_size for c in configs)
