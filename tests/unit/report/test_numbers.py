"""Fractions with their intervals."""

from metamorph_jax.report.numbers import counted, interval, wilson_interval


def test_wilson_interval_matches_a_textbook_case():
    low, high = wilson_interval(0.5, 100)
    assert (round(low, 3), round(high, 3)) == (0.404, 0.596)
    low, high = wilson_interval(1.0, 100)
    assert (round(low, 3), high) == (0.963, 1.0)
    assert wilson_interval(0.0, 0) == (0.0, 1.0)


def test_texts():
    assert counted(346, 360) == "96.1\u00a0% (346 of 360)"
    assert counted(0, 0) == "0.0\u00a0% (0 of 0)"
    assert interval(0.5, 100).split() == ["40.4", "to", "59.6", "%"]
