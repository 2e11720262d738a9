"""Our towers against `transformers` SigLIP and CLIP on random small configurations, each read from
its own `config.json`, alone or beside a text side: the hidden states of the feature layer, and the
gradient of every parameter that it depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from metamorph_jax.config.schema_model import VisionConfig
from metamorph_jax.hub import clip, siglip
from metamorph_jax.hub.configs import read_vision_config
from metamorph_jax.models.vit import VisionTower
from tests import tolerances
from tests.model_helpers import quick_jit
from tests.parity.torch_models import largest_differences, randomise

HUB = {"siglip": siglip, "clip": clip}
NUM_IMAGES = 2
SEEDS = range(16)  # of each family
ALONE = {
    "siglip": (transformers.SiglipVisionConfig, transformers.SiglipVisionModel),
    "clip": (transformers.CLIPVisionConfig, transformers.CLIPVisionModel),
}
WHOLE = {
    "siglip": (transformers.SiglipConfig, transformers.SiglipModel),
    "clip": (transformers.CLIPConfig, transformers.CLIPModel),
}
TEXT_SIDE = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
TEXT_SIDE |= {"num_attention_heads": 1, "bos_token_id": 1, "eos_token_id": 2}


def torch_model(family: str, seed: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Returns a whole model and its tower; every fourth has a text side, others are towers."""
    rng = np.random.default_rng(seed)
    num_heads = int(rng.choice([1, 2, 4]))
    fields = {
        "hidden_size": num_heads * int(rng.choice([6, 8])),
        "intermediate_size": int(rng.choice([20, 32])),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_attention_heads": num_heads,
        "image_size": int(rng.choice([12, 14, 15])),  # 14 and 15 leave pixels over
        "patch_size": int(rng.choice([3, 4])),
        "layer_norm_eps": float(rng.choice([1e-6, 1e-5, 1e-3])),
    }
    if seed % 3 == 0:
        fields["hidden_act"] = str(rng.choice(["gelu", "gelu_pytorch_tanh", "quick_gelu"]))
    if seed % 4:
        config_class, model_class = ALONE[family]
        model = model_class(config_class(**fields, attn_implementation="eager"))
        return randomise(model, seed), model
    config_class, model_class = WHOLE[family]
    config = config_class(
        vision_config=fields, text_config=TEXT_SIDE, attn_implementation="eager", projection_dim=8
    )
    model = randomise(model_class(config), seed)
    return model, model.vision_model


def our_config(hf_config: transformers.PretrainedConfig, seed: int) -> VisionConfig:
    values = hf_config.to_dict()
    num_layers = values.get("vision_config", values)["num_hidden_layers"]
    layers = [-1, -2, num_layers, max(num_layers - 1, 1), 0, -1]
    return read_vision_config(values, layers[seed % 6], cls_policy=["patch", "cls_patch"][seed % 2])


def torch_states(tower: torch.nn.Module, config: VisionConfig, pixels: np.ndarray):
    """Returns the input of block `feature_layer`, counted explicitly.

    What `output_hidden_states` returns last has changed between releases, so the blocks are run
    here one by one.
    """
    states = tower.embeddings(torch.tensor(np.moveaxis(pixels, -1, 1)))
    if config.family == "clip":
        states = tower.pre_layrnorm(states)
    count = config.feature_layer
    count = count if count >= 0 else config.num_layers + 1 + count
    for block in tower.encoder.layers[:count]:
        states = block(states, None)
    has_cls = config.family == "clip"
    return states[:, 1:] if has_cls and config.cls_policy == "patch" else states


def differences(family: str, seed: int) -> tuple[dict[str, float], float]:
    """Returns largest differences of the features and of each gradient, and the least cosine."""
    model, tower = torch_model(family, seed)
    config, hub = our_config(model.config, seed), HUB[family]
    rng = np.random.default_rng(seed)
    pixels = rng.normal(size=(NUM_IMAGES, config.image_size, config.image_size, 3)).astype("f4")
    theirs = torch_states(tower, config, pixels)
    cotangent = rng.normal(size=theirs.shape).astype("f4") / theirs.numel() ** 0.5
    (theirs * torch.tensor(cotangent)).sum().backward()

    tensors = {name: t.numpy() for name, t in model.state_dict().items()}
    params = jax.tree.map(jnp.asarray, hub.from_hf(tensors, config))
    our_tower = VisionTower(config, jnp.dtype("float32"), jnp.dtype("float32"))

    def weighted(params):
        states = our_tower.apply({"params": params}, pixels)
        return jnp.sum(states * cotangent), states

    grads, ours = quick_jit(jax.grad(weighted, has_aux=True))(params)
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == (NUM_IMAGES, config.num_tokens, config.embed_dim)
    assert 0.1 < np.abs(theirs).max() < 10
    our_grads = hub.to_hf(jax.device_get(grads), config)
    used = {f"vision_model.{n}": p for n, p in tower.named_parameters() if p.grad is not None}
    assert set(our_grads) == set(used)
    pairs = {f"gradient of {n}": (our_grads[n], p.grad.numpy()) for n, p in used.items()}
    return largest_differences(pairs | {"features": (ours, theirs)}), smallest_cosine(ours, theirs)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", ALONE)
def test_tower(family, seed):
    found, cosine = differences(family, seed)
    for name, difference in found.items():
        assert difference <= tolerances.PARITY, name
    assert cosine >= tolerances.FEATURE_COSINE


def smallest_cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the least cosine of any token with its counterpart."""
    norms = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    return float((np.sum(ours * theirs, axis=-1) / norms).min())


def test_configurations_cover_the_options():
    configs = [
        our_config(torch_model(family, seed)[0].config, seed) for family in ALONE for seed in SEEDS
    ]
    used = [c.num_used_layers for c in configs]
    assert 0 in used
    assert max(used) >= 2
    assert any(c.num_used_layers < c.num_layers for c in configs)
    assert any(c.image_size % c.patch_size for c in configs)
    assert {c.mlp_activation for c in configs} == {"gelu", "gelu_tanh", "quick_gelu"}
