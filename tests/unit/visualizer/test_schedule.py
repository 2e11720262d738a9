"""Schedules at their corners; the golden tables are in tests/golden."""

import dataclasses

import pytest

from metamorph_jax.visualizer.schedule import cosine, linear_warmup_constant, make_multiplier
from tests.visualizer_files import RUN


def test_cosine_rises_in_a_line_and_ends_at_zero():
    values = [cosine(step, warmup_steps=4, total_steps=12) for step in range(13)]
    assert values[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert values[8] == pytest.approx(0.5)
    assert values[12] == 0.0
    assert values[4:] == sorted(values[4:], reverse=True)


def test_no_warmup_starts_at_the_peak():
    assert cosine(0, warmup_steps=0, total_steps=10) == 1.0
    assert linear_warmup_constant(0, warmup_steps=0) == 1.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cosine", [0.0, 0.5, 1.0, 0.5]),
        ("linear_warmup_constant", [0.0, 0.5, 1.0, 1.0]),
        ("log_warmup_linear", [0.0, 0.6309297535714574, 1.0, 0.5]),  # ln 2 / ln 3
    ],
)
def test_recipe_names_the_schedule(name, expected):
    training = dataclasses.replace(RUN.training, schedule=name, warmup_steps=2, total_steps=6)
    multiplier = make_multiplier(training)
    assert [multiplier(step) for step in (0, 1, 2, 4)] == pytest.approx(expected)
