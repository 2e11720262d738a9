"""How many processes a run has and which one this is, read from environment variables.

Three sources, in this order:

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID   plain; what a launcher sets
    SLURM_STEP_NODELIST, SLURM_STEP_NUM_TASKS, SLURM_PROCID      of `srun`
    TPU_WORKER_HOSTNAMES, MEGASCALE_NUM_SLICES                   of GKE; jax reads the rest

JAX_NUM_PROCESSES=auto leaves it all to jax, as on TPU VMs, where only a metadata server knows.
Nothing here imports jax.
"""

import dataclasses
from collections.abc import Mapping

from metamorph_jax.errors import UserError

PLAIN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# For a program that a process of several starts, and that is to be the only one of its kind.
ALONE = dict(zip(PLAIN, ("localhost:0", "1", "0"), strict=True))
_AUTO = "auto"
# Above what operating systems hand out by themselves, as jax does: jobs on one node rarely collide.
_FIRST_PORT, _NUM_PORTS = 61440, 4096


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of this process in a run of several.

    Attributes:
        source: where that is known from, for messages.
        coordinator: HOST:PORT of process 0; None: jax finds out.
        count: processes in all; None: jax finds out.
        index: of this one; None: jax finds out.
        local_devices: devices of the host that are this process's own; None: all of them.
    """

    source: str
    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    local_devices: tuple[int, ...] | None = None

    def describe(self) -> str:
        """Returns one phrase for messages."""
        if self.count is None:
            return f"one of several processes, as {self.source} says"
        return f"process {self.index} of {self.count} ({self.source}, {self.coordinator})"


def find_place(environment: Mapping[str, str]) -> Place | None:
    """Returns this process's place; None: it is the only one.

    Raises:
        UserError: some plain variables are set and others are not, or they make no sense.
    """
    given = [name for name in PLAIN if environment.get(name)]
    if environment.get("JAX_NUM_PROCESSES") == _AUTO:
        return Place("JAX_NUM_PROCESSES=auto")
    if given:
        return _plain(environment, given)
    if "SLURM_STEP_NODELIST" in environment:
        return _slurm(environment)
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    num_slices = environment.get("MEGASCALE_NUM_SLICES", "1")
    if len(hosts) > 1 or num_slices != "1":
        return Place("TPU_WORKER_HOSTNAMES" if len(hosts) > 1 else "MEGASCALE_NUM_SLICES")
    return None


def check_alone(environment: Mapping[str, str], program: str) -> None:
    """Raises a UserError if there are other processes, for a program that works alone."""
    place = find_place(environment)
    if place is not None:
        raise UserError(
            f"{program} works in one process, but this is {place.describe()}; start it once, "
            f"without srun and without {', '.join(PLAIN)}"
        )


def _plain(environment: Mapping[str, str], given: list[str]) -> Place | None:
    absent = [name for name in PLAIN if name not in given]
    if absent:
        raise UserError(
            f"{', '.join(given)} is set, but {', '.join(absent)} is not; a run of several "
            "processes needs all three (HOST:PORT of process 0, how many, which one; see "
            "docs/launching.md), a run of one needs none"
        )
    address = environment["JAX_COORDINATOR_ADDRESS"]
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"JAX_COORDINATOR_ADDRESS={address}: expected HOST:PORT of process 0")
    count, index = (_number(environment, name) for name in PLAIN[1:])
    if not 0 <= index < count:
        raise UserError(
            f"JAX_PROCESS_ID={index} with JAX_NUM_PROCESSES={count}: expected 0 to {count - 1}"
        )
    return Place("plain variables", address, count, index) if count > 1 else None


def _slurm(environment: Mapping[str, str]) -> Place | None:
    """Returns the place that `srun` gives.

    jax itself would give each process one GPU, also when it has the node for itself.
    """
    count = _number(environment, "SLURM_STEP_NUM_TASKS")
    if count == 1:
        return None
    port = _FIRST_PORT + _number(environment, "SLURM_JOB_ID") % _NUM_PORTS
    address = f"{first_host(environment['SLURM_STEP_NODELIST'])}:{port}"
    shares_node = count > _number(environment, "SLURM_STEP_NUM_NODES")
    local = (_number(environment, "SLURM_LOCALID"),) if shares_node else None
    return Place("SLURM", address, count, _number(environment, "SLURM_PROCID"), local)


def first_host(node_list: str) -> str:
    """Returns the first host of a SLURM list, as "rack1gpu[007-015,020],cpu1" -> "rack1gpu007"."""
    first, bracket, rest = node_list.split(",")[0].partition("[")
    number = rest.split("-")[0].rstrip("]")
    _, _, suffix = node_list.partition("]")
    return first_host(first + number + suffix) if bracket else first


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdigit():
        raise UserError(f"{name}={text or 'unset'}: expected a number")
    return int(text)
