"""What a chip can do at most: the one table that MFU and plans are measured against.

Data, with sources; how fast a step really is, `throughput.py` measures. "Device" is what jax calls
one: a chip, but for TPU7x, where it is half of one.
"""

import dataclasses

GIB = 2**30
_BOOK = "jax-ml.github.io/scaling-book, chapter 'How to Think About TPUs'"
_NVIDIA = "NVIDIA's data sheet of the SXM board"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Peaks of one device.

    Attributes:
        name: as in `--topology=NAME:...`.
        kind: part of what `jax.Device.device_kind` says, in small letters.
        peak_flops: dense bf16 FLOP/s; a multiply-add is two.
        hbm_bytes: what a program may use. TPUs: as libtpu's compiler says when it runs out of it
            (libtpu 0.0.42.1); GPUs: what is left of the board's memory beside driver and context.
        hbm_bytes_per_sec: of its memory.
        link_bytes_per_sec: one way. TPUs: of one link to a neighbour along one axis of the torus;
            GPUs: of all NVLinks together.
        num_torus_axes: TPUs: axes of the torus; GPUs: 0.
        wraps_at: TPUs: an axis is closed to a ring if its length is a multiple of this; of three
            axes, if all are.
        devices_per_host: GPUs: that NVLink joins.
        network_bytes_per_sec: GPUs: one way, of a device's share of the network between hosts.
        source: of the numbers.
    """

    name: str
    kind: str
    peak_flops: float
    hbm_bytes: float
    hbm_bytes_per_sec: float
    link_bytes_per_sec: float
    num_torus_axes: int = 0
    wraps_at: int = 0
    devices_per_host: int = 8
    network_bytes_per_sec: float = 50e9
    source: str

    @property
    def is_tpu(self) -> bool:
        """Whether libtpu compiles for it."""
        return self.num_torus_axes > 0


CHIPS = (
    Chip(
        name="v4",
        kind="tpu v4",
        peak_flops=275e12,
        hbm_bytes=30.75 * GIB,
        hbm_bytes_per_sec=1.2e12,
        link_bytes_per_sec=45e9,
        num_torus_axes=3,
        wraps_at=4,
        source=_BOOK,
    ),
    Chip(
        name="v5e",
        kind="tpu v5 lite",
        peak_flops=197e12,
        hbm_bytes=15.75 * GIB,
        hbm_bytes_per_sec=0.81e12,
        link_bytes_per_sec=45e9,
        num_torus_axes=2,
        wraps_at=16,
        source=_BOOK,
    ),
    Chip(
        name="v5p",
        kind="tpu v5",
        peak_flops=459e12,
        hbm_bytes=95.74 * GIB,
        hbm_bytes_per_sec=2.8e12,
        link_bytes_per_sec=90e9,
        num_torus_axes=3,
        wraps_at=4,
        source=_BOOK,
    ),
    Chip(
        name="v6e",
        kind="tpu v6",
        peak_flops=918e12,
        hbm_bytes=31.25 * GIB,
        hbm_bytes_per_sec=1.6e12,
        link_bytes_per_sec=90e9,
        num_torus_axes=2,
        wraps_at=16,
        source=_BOOK,
    ),
    Chip(  # half a chip; the halves share its links
        name="tpu7x",
        kind="tpu7x",
        peak_flops=2307e12 / 2,
        hbm_bytes=94.75 * GIB,
        hbm_bytes_per_sec=7.38e12 / 2,
        link_bytes_per_sec=90e9 / 2,
        num_torus_axes=3,
        wraps_at=4,
        source="docs.cloud.google.com/tpu/docs/tpu7x",
    ),
    Chip(
        name="h100pcie",
        kind="h100 pcie",
        peak_flops=756e12,
        hbm_bytes=77 * GIB,
        hbm_bytes_per_sec=2.0e12,
        link_bytes_per_sec=64e9,
        source="NVIDIA's data sheet of the PCIe board",
    ),
    Chip(
        name="h100",
        kind="h100",
        peak_flops=989e12,
        hbm_bytes=77 * GIB,
        hbm_bytes_per_sec=3.35e12,
        link_bytes_per_sec=450e9,
        source=_NVIDIA,
    ),
    Chip(
        name="h200",
        kind="h200",
        peak_flops=989e12,
        hbm_bytes=138 * GIB,
        hbm_bytes_per_sec=4.8e12,
        link_bytes_per_sec=450e9,
        source=_NVIDIA,
    ),
    Chip(
        name="a100",
        kind="a100",
        peak_flops=312e12,
        hbm_bytes=77 * GIB,
        hbm_bytes_per_sec=2.04e12,
        link_bytes_per_sec=300e9,
        network_bytes_per_sec=25e9,
        source=_NVIDIA,
    ),
)


def chip_of_kind(device_kind: str) -> Chip | None:
    """Returns the chip of a device, None when it is not in the table; the longest match wins.

    Args:
        device_kind: as `jax.devices()[0].device_kind` says ("NVIDIA H200", "TPU v5 lite").
    """
    kind = device_kind.lower().replace("v5e", "v5 lite")
    hits = [chip for chip in CHIPS if chip.kind in kind]
    return max(hits, key=lambda chip: len(chip.kind), default=None)


def chip_called(name: str) -> Chip | None:
    """Returns the chip that a topology calls `name` ("v5p", "h200"), None without one."""
    name = {"v5": "v5p", "v5litepod": "v5e", "v6": "v6e"}.get(name.lower(), name.lower())
    return next((chip for chip in CHIPS if chip.name == name), None)
