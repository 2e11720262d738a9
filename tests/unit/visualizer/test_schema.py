"""The recipe's own checks, and the shipped recipe."""

import dataclasses

import pytest

from metamorph_jax.config.build import build_dataclass
from metamorph_jax.config.loading import load_recipe, to_dict
from metamorph_jax.errors import UserError
from metamorph_jax.visualizer.schedule import make_multiplier
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
    ("argument", "batch", "rate", "drop", "table"),
    [
        # ln(s + 1) / ln(2001) up to 2,000, then 12,000 steps down
        (":paper", 2112, 1.1e-5, 0.7, {0: 0.0, 1000: 0.908891, 2000: 1.0, 8000: 0.5, 14000: 0.0}),
        # the table of the released code, where it stopped at 12,000
        (
            ":released_code",
            192,
            1e-5,
            0.8,
            {
                0: 0.0,
                10: 0.289102,
                100: 0.556421,
                1000: 0.832952,
                4000: 1.0,
                8000: 0.666667,
                12000: 0.333333,
            },
        ),
    ],
)
def test_presets_are_the_published_ones(argument, batch, rate, drop, table):
    spec = f"configs/visualizer_sd15.py{argument}"
    training = load_recipe(spec, {}, VisualizerRunConfig).training
    assert (training.batch_size, training.learning_rate) == (batch, rate)
    assert training.condition_drop == drop
    multiplier = make_multiplier(training)
    found = {step: round(multiplier(step), 6) for step in table}
    assert found == table


def test_an_unknown_preset_is_told():
    with pytest.raises(UserError, match="expected paper or released_code"):
        load_recipe("configs/visualizer_sd15.py:both", {}, VisualizerRunConfig)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model__unet": None}, "unet: missing; latents.kind='pixels'"),
        ({"model__latents__kind": "vae"}, "latents.kind='vae' needs a Stable Diffusion folder"),
        ({"stable_diffusion": "x"}, "stable_diffusion is of no use with latents.kind='pixels'"),
        ({"training__grad_accum_steps": 3}, "batch_size=4 is no multiple of grad_accum_steps=3"),
        ({"training__ema_decay": 1.0}, "ema_decay=1.0 must be between 0 and 1"),
        ({"data__max_bad_fraction": 2.0}, "max_bad_fraction=2.0 is a fraction"),
        ({"data__num_workers": -1}, "num_workers=-1 must not be negative"),
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
