"""Times by hand: which resource bounds a step, and what follows."""

import pytest

from metamorph_jax.metrics.chips import chip_called
from metamorph_jax.planning.roofline import roofline


def times(**changes):
    values = {
        "model_flops": 3 * 459e12 * 64,
        "hardware_flops": 4 * 459e12 * 64,
        "hbm_bytes": 2.8e12,
        "interconnect_secs": 0.5,
        "num_tokens": 8_000,
        "total_steps": 86_400,
    }
    return roofline(chip_called("v5p"), 64, **(values | changes))


def test_a_step_that_waits_for_the_matrix_unit():
    found = times()
    assert found.times == pytest.approx({"matrix unit": 4.0, "memory": 1.0, "interconnect": 0.5})
    assert (found.bound_by, found.bound_secs) == ("matrix unit", pytest.approx(4.0))
    assert found.mfu == pytest.approx(0.75)
    assert found.tokens_per_sec == pytest.approx(2_000)
    assert found.days == pytest.approx(4.0)


def test_steps_that_wait_for_something_else():
    slow = times(interconnect_secs=6.0)
    assert (slow.bound_by, slow.mfu) == ("interconnect", pytest.approx(0.5))
    assert times(hbm_bytes=12 * 2.8e12).bound_by == "memory"
