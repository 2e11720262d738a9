"""Names of pods: what exists, and what is said of what does not."""

import importlib.util

import pytest

from metamorph_jax.errors import UserError
from metamorph_jax.metrics.chips import CHIPS, chip_called
from metamorph_jax.planning.topology import Pod, find_pod

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="pip install 'metamorph_jax[plan]'"
)


@pytest.mark.parametrize(("name", "count"), [("h200:8", 8), ("H100:64", 64), ("a100:4", 4)])
def test_gpus_are_counted_and_not_compiled_for(name, count):
    pod = find_pod(name)
    assert (pod.num_devices, pod.is_compiled_for) == (count, False)


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("v5p:4x4x4", "TPU v5", 64),
        ("v5e:8x8", "TPU v5 lite", 64),
        ("v6e:4x4", "TPU v6 lite", 16),
        ("v4:4x4x4", "TPU v4", 64),  # one device a chip
    ],
)
def test_tpu_pods_come_from_libtpu(name, kind, count):
    pod = find_pod(name)
    assert (len(pod.devices), pod.devices[0].device_kind) == (count, kind)
    places = {tuple(place) for place in pod.coordinates(list(pod.devices)).tolist()}
    assert len(places) == count


@needs_libtpu
@pytest.mark.parametrize("name", ["v5p:3x3x3", "v5e:5x7", "v5p:0x4x4"])
def test_a_pod_of_an_impossible_shape_is_told_from_possible_ones(name):
    with pytest.raises(UserError, match=rf"{name}: there is no such pod.*for example"):
        find_pod(name)


@pytest.mark.parametrize("name", ["v9:4x4", "v5p", "v5p:", "8xh200", "tpu:4x4x4", ""])
def test_an_unknown_chip_or_form_is_told_from_known_ones(name):
    with pytest.raises(UserError, match=r"expected CHIP:SHAPE.*v5p:4x4x4.*h200:8"):
        find_pod(name)


@pytest.mark.parametrize("name", ["h200:12", "h200:0", "h200:2x4"])
def test_gpus_are_whole_hosts(name):
    with pytest.raises(UserError, match=r"GPUs are counted, as in h200:8.*multiple of 8"):
        find_pod(name)


def test_rings_by_hand():
    torus = Pod("v5p:4x4x8", chip_called("v5p"), (4, 4, 8))
    assert [torus.is_ring(axis) for axis in range(3)] == [True] * 3
    small = Pod("v5p:2x2x4", chip_called("v5p"), (2, 2, 4))
    assert not any(small.is_ring(axis) for axis in range(3))
    flat = Pod("v5e:8x16", chip_called("v5e"), (8, 16))
    assert [flat.is_ring(axis) for axis in range(2)] == [False, True]


def test_every_chip_has_a_source_and_sensible_peaks():
    for chip in CHIPS:
        assert chip.source and 1e14 < chip.peak_flops < 2e15
        assert 15 * 2**30 < chip.hbm_bytes < 200 * 2**30
        assert chip_called(chip.name) is chip
