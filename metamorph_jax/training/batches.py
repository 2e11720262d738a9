"""Batches on their way to the devices: each process builds the rows that its own devices hold.

Along `context` and `tensor`, devices hold the same rows. If these are devices of several processes,
each builds them, and nothing in jax would notice if they came out different: so their checksums are
compared before a step uses them (`SharedRows`, agreement.Vote).
"""

import collections
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.config.schema_run import StageConfig
from metamorph_jax.errors import UserError
from metamorph_jax.metrics.flops import contrastive_flops, count_batch, model_flops
from metamorph_jax.sharding.rules import batch_sharding
from metamorph_jax.training.stages import Stage
from metamorph_jax.typing import Array, PyTree

# Steps ahead at which processes must know that one of them has no batch: one until the others are
# told (agreement.Vote), one until they read it.
_NOTICE_STEPS = 2


class Work(NamedTuple):
    """What a step processes: positions of rows, tokens without padding, images, model FLOPs."""

    num_positions: float
    num_tokens: float
    num_images: float
    flops: float


class DeviceBatches:
    """The batches of some steps of a stage, born sharded, each with what it is worth.

    With several processes they are read two steps ahead, so that all can stop at the same step if
    one of them cannot go on, or has other rows than one that shares them.

    Args:
        stage: whose data is read.
        model: for its arithmetic.
        start: first step of the stage.
        end: the one after the last.
        mesh: of the devices.

    Attributes:
        shared: checksums of all rows read so far that other processes have, too.
    """

    def __init__(self, stage: Stage, model: ModelConfig, start: int, end: int, mesh: Mesh):
        self.shared = SharedRows(mesh, stage.config.global_batch_size)
        self._source = _batches(stage, model, start, end, mesh, self.shared)
        self._notice = _NOTICE_STEPS if jax.process_count() > 1 else 0
        self._ready: collections.deque[tuple[PyTree, Work]] = collections.deque()
        self._problem: UserError | None = None

    @property
    def is_ending(self) -> bool:
        """Whether the data of a step to come cannot be used."""
        return self._problem is not None

    def check(self) -> None:
        """Reads ahead; raises the UserError of data that cannot be used."""
        self._fill()
        if self._problem is not None:
            raise self._problem

    def take(self) -> tuple[PyTree, Work] | None:
        """Returns the next batch; None if its data cannot be used, see `check`."""
        self._fill()
        return self._ready.popleft() if self._ready else None

    def _fill(self) -> None:
        while self._problem is None and len(self._ready) <= self._notice:
            try:
                batch = next(self._source, None)
            except UserError as problem:
                self._problem = problem
                return
            if batch is None:
                return
            self._ready.append(batch)


class SharedRows:
    """Checksums of the rows that this process and others hold.

    Args:
        mesh: of the devices.
        size: rows of a batch.

    Attributes:
        groups: for each of `mesh.devices.flat`, its first row; devices with the same hold the same.
        marks: the checksum of each device's rows in all batches so far; 0: nothing to compare.
    """

    def __init__(self, mesh: Mesh, size: int):
        held = batch_sharding(mesh).devices_indices_map((size,))
        devices = list(mesh.devices.flat)
        self.groups = [held[device][0].indices(size)[0] for device in devices]
        self.marks = [0] * len(devices)
        owners = collections.defaultdict(set)
        for group, device in zip(self.groups, devices, strict=True):
            owners[group].add(device.process_index)
        self._num_rows = size // len(owners)
        me = jax.process_index()
        self._shared = [group for group, who in owners.items() if me in who and len(who) > 1]

    def add(self, batch: Mapping[str, Array], places: Sequence[int]) -> None:
        """Takes up a batch of which this process has the rows at `places`."""
        for group in self._shared:
            first = places.index(group)
            rows = slice(first, first + self._num_rows)
            mark = self.marks[self.groups.index(group)]
            for name in sorted(batch):
                part = np.ascontiguousarray(batch[name][rows])
                mark = zlib.crc32(part.view(np.uint8), mark)
            mark &= 0x7FFFFFFF
            self.marks = [
                mark if other == group else old
                for other, old in zip(self.groups, self.marks, strict=True)
            ]


def _batches(
    stage: Stage, model: ModelConfig, start: int, end: int, mesh: Mesh, shared: SharedRows
) -> Iterator[tuple[PyTree, Work]]:
    sharding, size = batch_sharding(mesh), stage.config.global_batch_size
    places = local_places(sharding, size)
    all_rows = None if len(places) == size else places
    for batch in itertools.islice(stage.data.batches(start, all_rows), end - start):
        shared.add(batch, places)
        work = batch_work(model, stage.config, batch)
        # Of the other rows nothing is known here; they are taken to be like these.
        yield place(batch, sharding, places, size), Work(*(n * size / len(places) for n in work))


def local_places(sharding: NamedSharding, size: int) -> list[int]:
    """Returns which rows of a batch the devices of this process hold, in order."""
    held = sharding.addressable_devices_indices_map((size,)).values()
    return sorted({place for (rows,) in held for place in range(*rows.indices(size))})


def place(
    batch: Mapping[str, Array], sharding: NamedSharding, places: list[int], size: int
) -> dict[str, jax.Array]:
    """Returns the global arrays of a batch of which this process has the rows at `places`."""
    slot = np.zeros(size, np.int64)
    slot[places] = np.arange(len(places))

    def put(array: Array) -> jax.Array:
        def part(index: tuple[slice, ...]) -> Array:
            slots = slot[index[0]]  # what one device holds lies together here as there
            return array[slots[0] : slots[-1] + 1]

        return jax.make_array_from_callback((size, *array.shape[1:]), sharding, part)

    return {name: put(array) for name, array in batch.items()}


def batch_work(model: ModelConfig, stage: StageConfig, batch: PyTree) -> Work:
    """Returns the work in rows that are still on the host."""
    if stage.objective == "contrastive":
        num_images, mask = len(batch["images"]), batch["token_mask"]
        flops = contrastive_flops(model, num_images)
        return Work(mask.size, int(mask.sum()), num_images, flops)
    counts = count_batch(batch, model.visual_tokens.num_tokens)
    flops = model_flops(
        model, counts, stage.trained, stage.excluded, has_features="features" in batch
    )
    return Work(batch["segment_ids"].size, counts.num_tokens, counts.num_images, flops)
