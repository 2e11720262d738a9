"""What is checked before anything trains."""

import dataclasses

import pytest

from metamorph_jax.errors import UserError
from metamorph_jax.signals import Stopped
from metamorph_jax.training.stages import (
    DataProgress,
    check_answer_images,
    check_batch_divides,
    check_row_length,
)
from tests.tiny import tiny_model, tiny_stage


def test_a_batch_that_divides_passes():
    check_batch_divides(tiny_stage(global_batch_size=24, grad_accum_steps=3), num_shards=8)


@pytest.mark.parametrize(("steps", "shards"), [(1, 5), (4, 4)])
def test_a_batch_that_does_not_divide_by_the_mesh_is_named(steps, shards):
    stage = tiny_stage(global_batch_size=8, grad_accum_steps=steps)
    with pytest.raises(UserError, match=r"config\.stages\.vpit\.global_batch_size=8 does not"):
        check_batch_divides(stage, shards)


def test_reading_the_data_can_be_stopped():
    answers = iter([False, True])
    progress = DataProgress("vpit: reading the data", lambda: next(answers))
    progress(256, 1000)
    with pytest.raises(Stopped):
        progress(512, 1000)


def test_rows_longer_than_the_decoder_is_meant_for_are_refused():
    model, stage = tiny_model(), tiny_stage()
    exact = dataclasses.replace(model.llm, max_seq_len=stage.data.max_seq_len)
    check_row_length(dataclasses.replace(model, llm=exact), stage)
    short = dataclasses.replace(model.llm, max_seq_len=stage.data.max_seq_len - 1)
    with pytest.raises(UserError, match=r"data\.max_seq_len=24 is more than .*=23.*sliding window"):
        check_row_length(dataclasses.replace(model, llm=short), stage)


def test_images_in_answers_need_a_vision_head():
    check_answer_images(tiny_model(), tiny_stage(), 3)
    check_answer_images(tiny_model(vision_head="none"), tiny_stage(), 0)
    with pytest.raises(UserError, match=r"stages\.vpit\.data: 3 images stand in answers"):
        check_answer_images(tiny_model(vision_head="none"), tiny_stage(), 3)
