"""Arrays on disk through Orbax; the only file that imports it, and only when a store is made.

Orbax copies the arrays to the host, writes them in the background, every process of a pod its own
shards, and reads them back into any sharding. It does not notice damage, nor does it fall back:
manifest.py and selection.py do.
"""

import contextlib
import itertools
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import jax
import numpy as np

from metamorph_jax.checkpoints.ahead import one_ahead
from metamorph_jax.checkpoints.naming import unnest
from metamorph_jax.errors import UserError
from metamorph_jax.trees import unflatten

STATE_FOLDER = "state"
_CHUNK_BYTES = 16 * 2**20  # stored arrays are cut into such pieces, to be read in parts; memory for
# larger ones would come fresh from the system every time, which costs more than reading

Index = tuple[slice, ...]


class BlockReader(Protocol):
    """An array that is somewhere else and is read in parts: what streaming in and out works on."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, index: Index) -> np.ndarray:
        """Returns the part at `index`, one slice with bounds and without step per dimension."""
        ...


class ArrayWriter:
    """One save in the background. `start` copies to the host; `finish` waits for the disk."""

    def __init__(self) -> None:
        orbax = load_orbax()
        self._save_args = orbax.args.PyTreeSave
        # Weights hardly compress (7 % measured) and the processor is busy training.
        handler = orbax.PyTreeCheckpointHandler(use_compression=False)
        self._checkpointer = orbax.AsyncCheckpointer(handler)

    def start(self, folder: Path, named: Mapping[str, jax.Array]) -> None:
        """Copies the arrays to the host and begins to write `folder`/state.

        The arrays may be donated as soon as this returns.
        """
        chunked = _chunked(load_orbax(), named)
        args = self._save_args(unflatten(named), save_args=unflatten(chunked))
        self._checkpointer.save(folder / STATE_FOLDER, args=args)

    def finish(self) -> None:
        """Waits until all processes have written; raises what went wrong in the background."""
        try:
            self._checkpointer.wait_until_finished()
        finally:
            self._checkpointer.close()


def read_arrays(folder: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Returns the arrays called `wanted`, in their dtypes and shardings; reads no others.

    Args:
        folder: a verified checkpoint.
        wanted: by name; a leaf without sharding goes to the first device.
    """
    orbax = load_orbax()
    first_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    restore_args = {
        name: orbax.ArrayRestoreArgs(
            sharding=leaf.sharding or first_device, global_shape=leaf.shape, dtype=leaf.dtype
        )
        for name, leaf in wanted.items()
    }
    with orbax.Checkpointer(orbax.PyTreeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(
            folder / STATE_FOLDER,
            args=orbax.args.PyTreeRestore(
                item=unflatten(wanted), restore_args=unflatten(restore_args), partial_restore=True
            ),
        )
    arrays = unnest(restored)
    return {name: arrays[name] for name in wanted}


def write_blocks(
    folder: Path,
    named: Mapping[str, BlockReader],
    on_written: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Writes `folder`/state from arrays that are read block by block; holds two blocks at a time.

    Args:
        folder: of the checkpoint.
        named: by name.
        on_written: is told the bytes of each block.
    """
    orbax = load_orbax()
    types = orbax.type_handlers
    stopped, writing = threading.Event(), threading.Lock()

    class Handler(types.NumpyHandler):
        """Stores a `_Leaf` as Orbax stores a numpy array, but in blocks and one after another.

        Nothing is awaited, so that no other array is begun before this one is written, and nothing
        is left under way if a disk is full.
        """

        async def _open_and_write(self, value, tspec, ts_context):
            with writing:
                self._write(value, tspec, ts_context)

        def _write(self, value, tspec, ts_context):
            import tensorstore

            if stopped.is_set():
                raise InterruptedError("the writing of the checkpoint was stopped")
            spec = tensorstore.Spec(tspec)
            store = tensorstore.open(spec, create=True, open=True, context=ts_context).result()
            places = blocks(store.shape, store.chunk_layout.write_chunk.shape or ())
            parts = ((index, value.reader.read(index)) for index in places)
            with contextlib.closing(one_ahead(parts)) as ahead:
                for index, part in ahead:
                    if stopped.is_set():
                        raise InterruptedError("the writing of the checkpoint was stopped")
                    target = store[index]
                    target.write(part, can_reference_source_data_indefinitely=True).result()
                    on_written(part.nbytes)

    registry = types.create_type_handler_registry((_Leaf, Handler(deepcopy_host_arrays=False)))
    handler = orbax.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
    leaves = unflatten({name: _Leaf(reader) for name, reader in named.items()})
    args = orbax.args.PyTreeSave(leaves, save_args=unflatten(_chunked(orbax, named)))
    with orbax.Checkpointer(handler) as checkpointer:
        try:
            checkpointer.save(folder / STATE_FOLDER, args=args)
        except BaseException:  # Ctrl-C, too; Orbax writes in a thread, which would go on
            stopped.set()
            with writing:
                raise


def open_blocks(folder: Path, name: str) -> "StoredArray":
    """Returns an array of a verified checkpoint, to be read in parts.

    Raises:
        UserError: here or when it is read: the checkpoint was deleted or damaged since.
    """
    import tensorstore

    state = folder / STATE_FOLDER
    path = ".".join(name.split("/")) + "/"
    store = {"driver": "ocdbt", "base": f"file://{state.absolute()}/", "path": path}
    # A missing piece is an error, not zeros: a run that goes on may delete what is being read.
    spec = {"driver": "zarr", "kvstore": store, "fill_missing_data_reads": False}
    with _explained(folder):
        return StoredArray(folder, tensorstore.open(spec, open=True).result())


def blocks(shape: tuple[int, ...], block: tuple[int, ...]) -> Iterator[Index]:
    """Yields the indices of all blocks of an array, in order; those at its end may be smaller."""
    along = (
        [slice(start, min(start + step, size)) for start in range(0, size, step)]
        for size, step in zip(shape, block, strict=True)
    )
    return itertools.product(*along)


class StoredArray:
    """A `BlockReader` of a checkpoint.

    Attributes:
        shape: of the array.
        dtype: of its numbers.
        block: shape of the pieces in which it is stored; those at an end may be smaller.
    """

    def __init__(self, folder: Path, store: Any):
        self._folder, self._store = folder, store
        self.shape, self.dtype = tuple(store.shape), store.dtype.numpy_dtype
        self.block = tuple(store.chunk_layout.read_chunk.shape or ())  # a scalar has none

    def read(self, index: Index) -> np.ndarray:
        """Returns the part at `index`; see `open_blocks`."""
        import tensorstore

        stored = self._store[index]
        # Memory of numpy's has large pages, and is quicker to come by than the store's own.
        part = np.empty(stored.shape, self.dtype)
        with _explained(self._folder):
            tensorstore.array(part).write(stored).result()
        return part


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turns what the storage library says of missing or broken files into a UserError."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(
            f"{folder} was deleted or damaged while it was read; name a newer step, or copy a "
            "checkpoint away from a run that goes on before reading it"
        ) from error


class _Leaf:
    """A `BlockReader` with what Orbax asks of an array."""

    def __init__(self, reader: BlockReader):
        self.reader, self.shape, self.dtype = reader, tuple(reader.shape), np.dtype(reader.dtype)
        self.ndim, self.size = len(self.shape), int(np.prod(self.shape, dtype=np.int64))
        self.nbytes = self.size * self.dtype.itemsize


def _chunked(orbax: ModuleType, named: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how to store each array: large ones in pieces, stacks of blocks block by block."""

    def arguments(name: str, leaf: Any) -> Any:
        num_bytes = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        is_stack = "/blocks/" in name and num_bytes > _CHUNK_BYTES
        return orbax.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if is_stack else ())

    return {name: arguments(name, leaf) for name, leaf in named.items()}


def load_orbax() -> ModuleType:
    """Returns the module orbax.checkpoint, imported here because that takes a second or two."""
    import orbax.checkpoint

    chatty = logging.getLogger("absl")
    if _is_not_from_orbax not in chatty.filters:
        chatty.addFilter(_is_not_from_orbax)
    return orbax.checkpoint


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    """A logging filter: the store itself reports what went wrong, once, with what to do."""
    return "/orbax/" not in record.pathname.replace("\\", "/")
