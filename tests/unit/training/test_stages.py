"""What is checked before anything trains."""

import pytest

from metamorph_jax.errors import UserError
from metamorph_jax.signals import Stopped
from metamorph_jax.training.stages import DataProgress, check_batch_divides
from tests.tiny import tiny_stage


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
