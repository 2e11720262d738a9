"""Arrays on disk through Orbax; the only file that imports it, and only when a store is made.

Orbax copies the arrays to the host, writes them in the background, every process of a pod its own
shards, and reads them back into any sharding. It does not notice damage, nor does it fall back:
manifest.py and selection.py do.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import jax

from metamorph_jax.checkpoints.naming import unnest
from metamorph_jax.trees import unflatten

STATE_FOLDER = "state"


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
        self._checkpointer.save(folder / STATE_FOLDER, args=self._save_args(unflatten(named)))

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
