"""Names of pods -> what to compile for and what it can do: `v5p:4x4x4`, `h200:8`.

TPU pods come from libtpu, which compiles for pods that are not here. GPUs have no such compiler:
a plan for them is arithmetic only.
"""

import dataclasses
import importlib.util
import os
import re

import jax
import numpy as np

from metamorph_jax.errors import UserError
from metamorph_jax.metrics.chips import CHIPS, Chip, chip_called
from metamorph_jax.typing import Array, Int

_FORM = re.compile(r"([A-Za-z0-9]+):(\d+(?:x\d+)*)")
# libtpu asks these on loading; without answers it searches for hardware, warns and waits.
_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no device is opened, so two plans may run at once
}


@dataclasses.dataclass(frozen=True)
class Pod:
    """A machine to plan for.

    Attributes:
        name: as given.
        chip: peaks of one device.
        extents: TPUs: length of each axis of the torus, in chips. GPUs: devices.
        devices: TPUs: to compile for, not to run on. GPUs: none.
    """

    name: str
    chip: Chip
    extents: tuple[int, ...]
    devices: tuple[jax.Device, ...] = ()
    num_devices: int = 0

    @property
    def is_compiled_for(self) -> bool:
        """Whether there is a compiler for it here."""
        return bool(self.devices)

    def coordinates(self, devices: list[jax.Device]) -> Int[Array, "n axes"]:
        """Returns where on the torus devices are."""
        return np.array([device.coords for device in devices])[:, : len(self.extents)]

    def is_ring(self, axis: int) -> bool:
        """Whether an axis of the torus is closed, so that both ends are neighbours."""
        multiple = [extent % self.chip.wraps_at == 0 for extent in self.extents]
        return all(multiple) if self.chip.num_torus_axes == 3 else multiple[axis]


def find_pod(name: str) -> Pod:
    """Returns the pod called `name`.

    Raises:
        UserError: there is no such pod, or no libtpu to compile for it.
    """
    form = _FORM.fullmatch(name.strip())
    chip = chip_called(form.group(1)) if form else None
    if form is None or chip is None:
        raise UserError(_unknown(name))
    extents = tuple(int(number) for number in form.group(2).split("x"))
    if not chip.is_tpu:
        return _gpus(name, chip, extents)
    devices = _tpu_devices(name, chip, form.group(2))
    return Pod(name, chip, extents, tuple(devices), len(devices))


def _gpus(name: str, chip: Chip, extents: tuple[int, ...]) -> Pod:
    count, per_host = extents[0], chip.devices_per_host
    if len(extents) > 1 or count < 1 or (count > per_host and count % per_host):
        raise UserError(
            f"--topology={name}: GPUs are counted, as in {chip.name}:8; up to {per_host} share a "
            f"host, and more are whole hosts: a multiple of {per_host}"
        )
    return Pod(name, chip, extents, (), count)


def _tpu_devices(name: str, chip: Chip, extents: str) -> list[jax.Device]:
    """Returns the devices that libtpu compiles for."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={name}: libtpu, the compiler for TPUs, is not installed; run pip install "
            "'metamorph_jax[plan]' (Linux on x86-64; no TPU is needed), or plan for GPUs by "
            "arithmetic, as in --topology=h200:8"
        )
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    from jax.experimental.topologies import get_topology_desc

    # Both cores of a v4 chip work as one device, as they do in training.
    options = {"chip_config_name": "megacore"} if chip.name == "v4" else {}
    try:
        return get_topology_desc(f"{chip.name}:{extents}", platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(_impossible(name, chip, str(error))) from error


def _impossible(name: str, chip: Chip, reason: str) -> str:
    """Returns what is wrong with the extents of a TPU pod, and what would be possible."""
    possible = (
        "4x4x4, 4x4x8, 8x8x8 (three numbers; one host is 2x2x1)"
        if chip.num_torus_axes == 3
        else "2x2, 4x4, 8x8, 16x16 (two numbers; one host is 2x2 or 2x4)"
    )
    reason = reason.partition(":")[2].strip() or reason
    return (
        f"--topology={name}: there is no such pod: libtpu says: {reason}. "
        f"Pods of {chip.name} are, for example, {possible}"
    )


def _unknown(name: str) -> str:
    tpus = ", ".join(chip.name for chip in CHIPS if chip.is_tpu)
    gpus = ", ".join(chip.name for chip in CHIPS if not chip.is_tpu)
    return (
        f"--topology={name}: expected CHIP:SHAPE. TPUs: {tpus} with the pod's shape in chips, as "
        f"in v5p:4x4x4 or v5e:8x8. GPUs: {gpus} with their number, as in h200:8 or h100:64"
    )
