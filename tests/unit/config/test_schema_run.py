"""What a run's section may not say."""

import dataclasses
from pathlib import Path

import pytest

from metamorph_jax.config.loading import load_recipe
from metamorph_jax.config.schema_run import (
    CheckpointConfig,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    SourceConfig,
    StageConfig,
)
from metamorph_jax.errors import UserError

DIGITS = str(Path(__file__).resolve().parents[3] / "configs" / "digits.py")
DATA = DataConfig(sources=(SourceConfig(path="a.jsonl"),))
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, reference_batch_size=8)
STAGE = StageConfig(
    name="one",
    data=DATA,
    trained=("connector",),
    optimizer=OPTIMIZER,
    total_steps=3,
    global_batch_size=8,
)
NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize("value", [0, -2])
@pytest.mark.parametrize(
    ("config", "name"),
    [
        (STAGE, "total_steps"),
        (STAGE, "global_batch_size"),
        (STAGE, "grad_accum_steps"),
        (DATA, "max_seq_len"),
        (OPTIMIZER, "reference_batch_size"),
        (LossConfig(), "vocab_chunk_size"),
        (CheckpointConfig(), "interval_steps"),
        (load_recipe(DIGITS), "log_interval_steps"),
    ],
)
def test_counts_are_positive(config, name, value):
    assert config.problems() == []
    wrong = dataclasses.replace(config, **{name: value})
    assert wrong.problems() == [f"{name}={value} must be at least 1"]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (DATA, "max_images"),
        (DATA, "num_workers"),
        (DATA, "prefetch_batches"),
        (STAGE, "shift_pixels"),
    ],
)
def test_counts_are_not_negative(config, name):
    assert dataclasses.replace(config, **{name: 0}).problems() == []
    wrong = dataclasses.replace(config, **{name: -1})
    assert wrong.problems() == [f"{name}=-1 must be at least 0"]


@pytest.mark.parametrize("value", [0.0, -1e-3, NAN, INFINITY])
@pytest.mark.parametrize(
    ("config", "name"),
    [(OPTIMIZER, "learning_rate"), (OPTIMIZER, "max_grad_norm"), (DATA.sources[0], "weight")],
)
def test_factors_are_positive_and_finite(config, name, value):
    wrong = dataclasses.replace(config, **{name: value})
    assert wrong.problems() == [f"{name}={value} must be positive and finite"]


def test_an_epoch_fits_into_memory():
    wrong = dataclasses.replace(DATA.sources[0], weight=1e9)
    assert wrong.problems() == ["weight=1000000000.0 must be at most 1000"]


@pytest.mark.parametrize("value", [-0.1, 1.1, NAN])
def test_warmup_is_a_fraction(value):
    assert OPTIMIZER.problems() == []
    wrong = dataclasses.replace(OPTIMIZER, warmup_ratio=value)
    assert wrong.problems() == [f"warmup_ratio={value} must be from 0 to 1"]
    assert dataclasses.replace(OPTIMIZER, warmup_ratio=1.0).problems() == []


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (OPTIMIZER, "weight_decay"),
        (LossConfig(), "visual_weight"),
        (LossConfig(), "reconstruction_weight"),
    ],
)
def test_weights_are_not_negative(config, name):
    for value in (-1.0, NAN, INFINITY):
        wrong = dataclasses.replace(config, **{name: value})
        assert wrong.problems() == [f"{name}={value} must be at least 0 and finite"]


@pytest.mark.parametrize("name", ["b1", "b2"])
def test_moment_decays_are_below_one(name):
    for value in (-0.1, 1.0, NAN):
        assert dataclasses.replace(OPTIMIZER, **{name: value}).problems() == [
            f"{name}={value} must be at least 0 and below 1"
        ]


def test_data_has_sources():
    (problem,) = dataclasses.replace(DATA, sources=()).problems()
    assert problem.startswith("sources is empty")


def test_contrastive_batches_are_not_cut_up():
    assert dataclasses.replace(STAGE, grad_accum_steps=2).problems() == []
    stage = dataclasses.replace(STAGE, objective="contrastive")
    assert stage.problems() == []
    (problem,) = dataclasses.replace(stage, grad_accum_steps=2).problems()
    assert "grad_accum_steps=2" in problem and "negatives" in problem


def test_a_recipe_with_zeros_lists_them_by_path():
    overrides = {
        "stages.adapter.grad_accum_steps": "0",
        "model.llm.num_kv_heads": "0",
        "model.vision.patch_size": "0",
        "stages.vpit.data.sources": "()",
    }
    with pytest.raises(UserError) as caught:
        load_recipe(DIGITS, overrides)
    message = str(caught.value)
    assert "4 problems" in message
    assert "config.stages.adapter: grad_accum_steps=0 must be at least 1" in message
    assert "config.model.llm: num_kv_heads=0 must be at least 1" in message
    assert "config.model.vision: patch_size=0 must be at least 1" in message
    assert "config.stages.vpit.data: sources is empty" in message


@pytest.mark.parametrize("geometry", ["square", "pad", "anyres", "anyres_max_1", "anyres_max_9"])
def test_geometries(geometry):
    data = dataclasses.replace(DATA, image_geometry=geometry)
    assert data.problems() == []
    assert data.is_anyres == geometry.startswith("anyres")
    assert data.max_tiles == {"anyres_max_1": 1, "anyres_max_9": 9}.get(geometry)


@pytest.mark.parametrize(
    "geometry", ["", "squre", "anyres_max", "anyres_max_", "anyres_max_0", "anyres_9", "xanyres"]
)
def test_no_geometry(geometry):
    (problem,) = dataclasses.replace(DATA, image_geometry=geometry).problems()
    assert problem.startswith(f"image_geometry={geometry!r}: expected 'square', 'pad', 'anyres'")


def test_a_row_holds_an_image_of_the_largest_grid():
    data = dataclasses.replace(DATA, image_geometry="anyres", max_images=5)
    assert data.problems() == []
    (problem,) = dataclasses.replace(data, max_images=4).problems()
    assert problem == (
        "max_images=4, but an image on the grid (2x2) has 5 views: raise it to 5 or more"
    )
    (problem,) = dataclasses.replace(data, image_grid_pinpoints="(1x1),...,(6x6)").problems()
    assert "grid (6x6) has 37 views" in problem
    (problem,) = dataclasses.replace(data, image_grid_pinpoints="2x2").problems()
    assert problem.startswith("pinpoints '2x2' are no grids of tiles")
    assert dataclasses.replace(DATA, image_grid_pinpoints="2x2").problems() == []


def test_captions_are_of_whole_images():
    data = dataclasses.replace(DATA, image_geometry="anyres")
    assert dataclasses.replace(STAGE, data=data).problems() == []
    (problem,) = dataclasses.replace(STAGE, data=data, objective="contrastive").problems()
    assert "image_geometry='anyres'" in problem and "'square' or 'pad'" in problem


def test_anyres_needs_a_newline_and_a_square_of_patches():
    overrides = {"stages.vpit.data.image_geometry": "anyres_max_9"}
    with pytest.raises(UserError, match=r"set model\.image_newline=True"):
        load_recipe(DIGITS, overrides)
    overrides["model.image_newline"] = "True"
    assert load_recipe(DIGITS, overrides).model.image_newline
    model = load_recipe(DIGITS, overrides).model
    vision = dataclasses.replace(model.vision, family="clip", cls_policy="cls_patch")
    tokens = dataclasses.replace(model.visual_tokens, reduction="none", num_tokens=65)
    model = dataclasses.replace(model, vision=vision, visual_tokens=tokens)
    assert model.problems() == []
    run = dataclasses.replace(load_recipe(DIGITS, overrides), model=model)
    (problem,) = run.problems()
    assert "num_tokens=65 is no square of patches" in problem and "cls_policy" in problem


def test_a_model_without_vision_head_takes_no_visual_loss():
    digits = load_recipe(DIGITS)
    llava = dataclasses.replace(digits.model, vision_head="none")
    problems = dataclasses.replace(digits, model=llava).problems()
    assert len(problems) == 1 and problems[0].startswith("stages.vpit.loss.visual_weight=1.0, but")
    assert "set it to 0" in problems[0]
