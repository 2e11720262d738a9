"""Learning rates."""

import math

import numpy as np
import pytest

from metamorph_jax.config.schema_run import OptimizerConfig
from metamorph_jax.optim.schedule import make_schedule, num_warmup_steps, peak_learning_rate
from tests.golden_data import load_case


@pytest.mark.golden
def test_cosine_equals_the_reference():
    for case in load_case("F_visualizer_projector")[0]["lr_schedules"]["language_model_cosine"]:
        total, warmup = case["total_steps"], case["warmup_steps"]
        config = OptimizerConfig(learning_rate=1.0)
        assert num_warmup_steps(config, total) == warmup
        ours = make_schedule(config, total, 1)(np.array(case["steps"]))
        np.testing.assert_allclose(ours, case["multiplier"], atol=1e-6)


@pytest.mark.parametrize(
    ("batch", "rate"),
    [(48, 1.225e-5), (448, 3.743e-5), (512, 4.00e-5), (768, 4.90e-5), (1536, 6.93e-5)],
)
def test_square_root_rule_gives_the_published_rates(batch, rate):
    config = OptimizerConfig(learning_rate=6.93e-5, reference_batch_size=1536)
    assert math.isclose(peak_learning_rate(config, batch), rate, rel_tol=1e-3)


def test_without_reference_the_rate_is_as_given():
    assert peak_learning_rate(OptimizerConfig(learning_rate=3e-4), 7) == 3e-4
