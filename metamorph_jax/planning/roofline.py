"""The times that a step cannot be faster than, one per resource, and what follows.

A bound, not a forecast: real steps reach 0.55 to 0.9 of it (docs/scaling.md). Resources are taken
to work at their peaks and at the same time.
"""

import dataclasses

from metamorph_jax.metrics.chips import Chip

SECS_PER_DAY = 86_400


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Times of one step, in seconds, and rates at the longest of them.

    Attributes:
        matrix_secs: of the matrix units.
        hbm_secs: of reading and writing memory.
        interconnect_secs: of exchanging data.
        tokens_per_sec: of all devices.
        mfu: model FLOPs over what the peak would allow.
        days: of all steps of the stage.
    """

    matrix_secs: float
    hbm_secs: float
    interconnect_secs: float
    tokens_per_sec: float
    mfu: float
    days: float

    @property
    def times(self) -> dict[str, float]:
        """The three times by resource."""
        return {
            "matrix unit": self.matrix_secs,
            "memory": self.hbm_secs,
            "interconnect": self.interconnect_secs,
        }

    @property
    def bound_secs(self) -> float:
        """The longest of the three."""
        return max(self.times.values())

    @property
    def bound_by(self) -> str:
        """Which of the three it is."""
        return max(self.times, key=self.times.get)


def roofline(
    chip: Chip,
    num_devices: int,
    *,
    model_flops: float,
    hardware_flops: float,
    hbm_bytes: float,
    interconnect_secs: float,
    num_tokens: int,
    total_steps: int,
) -> Roofline:
    """Returns the times of one step.

    Args:
        chip: of the devices.
        num_devices: in all.
        model_flops: of a step, all devices together.
        hardware_flops: likewise, with what is computed again.
        hbm_bytes: that each device reads and writes in a step.
        interconnect_secs: from `collectives.sum_up`, all exchanges one after another.
        num_tokens: of a step, all devices together.
        total_steps: of the stage.
    """
    matrix_secs = hardware_flops / num_devices / chip.peak_flops
    hbm_secs = hbm_bytes / chip.hbm_bytes_per_sec
    bound = max(matrix_secs, hbm_secs, interconnect_secs)
    return Roofline(
        matrix_secs,
        hbm_secs,
        interconnect_secs,
        tokens_per_sec=num_tokens / bound,
        mfu=model_flops / num_devices / chip.peak_flops / bound,
        days=total_steps * bound / SECS_PER_DAY,
    )
