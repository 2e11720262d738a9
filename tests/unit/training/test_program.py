"""What is compiled for a stage, and what is checked of its shapes before anything is allocated."""

import dataclasses

import jax
import numpy as np
import pytest

from metamorph_jax.config.loading import load_recipe
from metamorph_jax.config.schema_data import DataConfig
from metamorph_jax.config.schema_run import MeshConfig
from metamorph_jax.errors import UserError
from metamorph_jax.sharding.mesh import create_mesh
from metamorph_jax.training.program import (
    abstract_batch,
    check_batch_divides,
    check_heads_divide,
    check_row_length,
    check_shapes,
)
from tests.tiny import tiny_batch, tiny_model, tiny_stage


def mesh():
    return create_mesh(MeshConfig(fsdp=1), jax.devices()[:1])


def shapes(batch):
    return {name: (array.shape, np.dtype(array.dtype)) for name, array in batch.items()}


def test_abstract_batch_is_shaped_like_a_real_one():
    assert shapes(abstract_batch(tiny_model(), tiny_stage(), mesh())) == shapes(tiny_batch(0))


def test_abstract_batch_knows_kept_features_mixtures_and_captions():
    model = tiny_model(dtype="bfloat16", image_newline=True)
    data = DataConfig(
        sources=(),
        max_images=3,
        features="kept",
        image_geometry="anyres_max_9",
        image_grid_pinpoints="(1x2)",
    )
    batch = shapes(abstract_batch(model, tiny_stage(data=data), mesh()))
    assert batch["features"] == ((8, 3, 4, 8), np.dtype(jax.numpy.bfloat16))
    assert batch["visual_sources"][0] == (8, 4096, 4) and "images" not in batch
    captions = shapes(abstract_batch(model, tiny_stage(objective="contrastive"), mesh()))
    assert captions["caption_ids"] == ((8,), np.dtype(np.int32))
    assert captions["images"][0] == (8, 16, 16, 3)


def test_a_batch_that_divides_passes():
    check_batch_divides(tiny_stage(global_batch_size=24, grad_accum_steps=3), num_shards=8)


@pytest.mark.parametrize(("steps", "shards"), [(1, 5), (4, 4)])
def test_a_batch_that_does_not_divide_by_the_mesh_is_named(steps, shards):
    stage = tiny_stage(global_batch_size=8, grad_accum_steps=steps)
    with pytest.raises(UserError, match=r"config\.stages\.vpit\.global_batch_size=8 does not"):
        check_batch_divides(stage, shards)


def test_rows_longer_than_the_decoder_is_meant_for_are_refused():
    model, stage = tiny_model(), tiny_stage()
    exact = dataclasses.replace(model.llm, max_seq_len=stage.data.max_seq_len)
    check_row_length(dataclasses.replace(model, llm=exact), stage)
    short = dataclasses.replace(model.llm, max_seq_len=stage.data.max_seq_len - 1)
    with pytest.raises(UserError, match=r"data\.max_seq_len=24 is more than .*=23.*sliding window"):
        check_row_length(dataclasses.replace(model, llm=short), stage)


def test_query_heads_must_divide_by_tensor_but_key_heads_need_not():
    check_heads_divide(tiny_model(), 4)  # 4 query heads, 2 key heads
    with pytest.raises(UserError, match=r"tensor=3, .*num_heads=4 .*4 = 1 x 3 \+ 1.* 1, 2, 4"):
        check_heads_divide(tiny_model(), 3)
    with pytest.raises(UserError, match=r"4 = 0 x 8 \+ 4"):
        check_heads_divide(tiny_model(), 8)


def test_shapes_of_a_recipe_are_checked_together():
    config = load_recipe("configs/vpit_8b.py")
    check_shapes(config, config.stages[1], {"data": 1, "fsdp": 64, "tensor": 1})
    with pytest.raises(UserError, match="num_heads=32 does not divide"):
        check_shapes(config, config.stages[1], {"data": 1, "fsdp": 2, "tensor": 64})
