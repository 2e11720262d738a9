"""What is checked before anything trains."""

import pytest

from metamorph_jax.errors import UserError
from metamorph_jax.signals import Stopped
from metamorph_jax.training.stages import DataProgress, check_answer_images
from tests.tiny import tiny_model, tiny_stage


def test_reading_the_data_can_be_stopped():
    answers = iter([False, True])
    progress = DataProgress("vpit: reading the data", lambda: next(answers))
    progress(256, 1000)
    with pytest.raises(Stopped):
        progress(512, 1000)


def test_images_in_answers_need_a_vision_head():
    check_answer_images(tiny_model(), tiny_stage(), 3)
    check_answer_images(tiny_model(vision_head="none"), tiny_stage(), 0)
    with pytest.raises(UserError, match=r"stages\.vpit\.data: 3 images stand in answers"):
        check_answer_images(tiny_model(vision_head="none"), tiny_stage(), 3)
