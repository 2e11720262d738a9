"""Rates from a clock that the test moves, and the table of peaks."""

import pytest

from metamorph_jax.metrics.throughput import (
    StepTimer,
    measured_float32_matmul_flops,
    peak_flops_per_device,
)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
        ("NVIDIA GeForce GTX 970", None),
    ],
)
def test_peak_by_device_kind(kind, peak):
    assert peak_flops_per_device(kind) == peak


def test_rates_over_the_window():
    clock = Clock()
    timer = StepTimer(peak_flops=1000.0, window=2, clock=clock)
    assert timer.rates() == {}
    clock.now += 50  # compilation: must not count
    timer.step(num_tokens=999, num_images=9, flops=9e9)
    assert timer.rates() == {}
    for tokens, wait in ((10, 4.0), (20, 1.0), (40, 2.0)):
        with timer.waiting():
            clock.now += wait
        clock.now += 5 - wait
        timer.step(num_positions=50, num_tokens=tokens, num_images=2, flops=2500.0)
    assert timer.rates() == {
        "step_secs": 5.0,
        "tokens_per_sec": 10.0,
        "useful_tokens_per_sec": 6.0,  # (20 + 40) / 10: the window forgot the first
        "images_per_sec": 0.4,
        "data_wait_fraction": 0.3,
        "mfu": 0.5,
    }


def test_reset_forgets():
    clock = Clock()
    timer = StepTimer(clock=clock)
    timer.step(num_tokens=1)
    timer.reset()
    clock.now += 1
    timer.step(num_tokens=1)
    assert timer.rates() == {}
    clock.now += 1
    timer.step(num_positions=4, num_tokens=3)
    rates = timer.rates()
    assert rates["tokens_per_sec"] == 4.0
    assert rates["useful_tokens_per_sec"] == 3.0
    assert "mfu" not in rates


def test_measured_peak_is_plausible():
    assert 1e8 < measured_float32_matmul_flops(size=128, num_repeats=2) < 1e15
