"""The recipe's own checks, and the shipped recipe."""

import dataclasses

import pytest

from metamorph_jax.config.build import build_dataclass
from metamorph_jax.config.loading import load_recipe, to_dict
from metamorph_jax.errors import UserError
from metamorph_jax.visualizer.schema import ProjectorConfig, VisualizerConfig, VisualizerRunConfig
from tests.visualizer_files import MODEL, RECIPE, RUN


def changed(**sections):
    values = to_dict(RUN)
    for path, value in sections.items():
        *parents, leaf = path.split("__")
        node = values
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return values


def test_recipe_file_is_the_dataclass(tmp_path):
    file = tmp_path / "recipe.py"
    file.write_text(RECIPE)
    assert load_recipe(str(file), {}, VisualizerRunConfig) == RUN


def test_digits_recipe_paints_scans_at_their_native_size():
    config = load_recipe("configs/visualizer_digits.py", {}, VisualizerRunConfig)
    assert config.model.latents.size == 8
    assert config.model.latents.picture_size == 32
    assert config.model.num_tokens == 16


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model__context_len": 3}, "context_len=3 cannot hold the 4 tokens"),
        ({"model__unet__channels": [8, 18]}, "channels=(8, 18) must be multiples of norm_groups=4"),
        ({"model__unet__cross_attention": [True]}, "channels has 2 resolutions, cross_attention 1"),
        ({"model__latents__picture_size": 9}, "picture_size=9 is no multiple of size=4"),
        ({"model__latents__size": 1}, "latents.size=1 cannot be halved 1 times"),
        ({"model__latents__channels": 3}, "channels=3: pixels are grey"),
        ({"model__projector__num_layers": 1}, "num_layers=1: an mlp has at least 2"),
        ({"training__warmup_steps": 6}, "warmup_steps=6 must be below total_steps=6"),
        ({"training__batch_size": 0}, "batch_size=0 must be positive"),
        ({"training__condition_drop": 1.5}, "condition_drop=1.5 is a fraction"),
        ({"checkpoint__keep": 1}, "keep=1: at least 2"),
        ({"checkpoint__interval_steps": 0}, "interval_steps=0 must be at least 1"),
        ({"model__unet__chanels": [8]}, "config.model.unet.chanels: no such key; did you mean"),
    ],
)
def test_mistakes_are_told(changes, told):
    with pytest.raises(UserError) as error:
        build_dataclass(VisualizerRunConfig, changed(**changes))
    assert told in str(error.value)


def test_attention_projector_has_as_many_tokens_as_queries():
    projector = ProjectorConfig(mode="xattn", num_queries=3, num_heads=3)
    model = dataclasses.replace(MODEL, projector=projector)
    assert model.num_projected == 3
    with pytest.raises(UserError, match=r"context_dim=8 is no multiple of projector\.num_heads=3"):
        build_dataclass(VisualizerConfig, to_dict(model))
