"""Which attention computes the rows of a training step, and why.

    xla       all scores of a row at once: the reference, for short rows
    chunked   plain array code in blocks: works everywhere
    splash    jax's fused TPU kernel
    flash     jax's fused GPU kernel

All of them honour segments. What cannot is refused here, before anything is compiled.
"""

import importlib.util
from typing import NamedTuple

from metamorph_jax.errors import UserError
from metamorph_jax.ops.attention_kernels import block_size

_FLASH_MODULE = "jax.experimental.pallas.ops.gpu.attention"


class Choice(NamedTuple):
    """A backend, and half a sentence on why."""

    name: str
    reason: str


def choose_backend(
    wanted: str, platform: str, *, head_dim: int, length: int, num_context: int = 1
) -> Choice:
    """Returns the backend for rows of `length` on devices of `platform`.

    Args:
        wanted: a backend, or `auto`.
        platform: `cpu`, `gpu` or `tpu`: of the devices that the program is compiled for.
        head_dim: H.
        length: T, of whole rows.
        num_context: devices that the positions of a row are split over.

    Raises:
        UserError: the backend that is wanted cannot compute this.
    """
    if wanted == "auto":
        if _family(platform) == "gpu":
            return Choice("chunked", "'flash' was only tested in Python so far: choose it by name")
        if _family(platform) != "tpu":
            return Choice("chunked", f"no fused kernel runs on {platform}")
        obstacle = _obstacle("splash", platform, head_dim, length, num_context)
        if obstacle:
            return Choice("chunked", f"splash cannot: {obstacle}")
        return Choice("splash", "the fused kernel of TPUs, which honours segments")
    obstacle = _obstacle(wanted, platform, head_dim, length, num_context)
    if obstacle:
        raise UserError(
            f"config.model.llm.attention={wanted!r} cannot compute this: {obstacle}; "
            "use 'chunked', which runs everywhere, or 'auto'"
        )
    return Choice(wanted, "as the recipe says")


def _obstacle(name: str, platform: str, head_dim: int, length: int, num_context: int) -> str:
    """Returns why a backend cannot compute this, or nothing."""
    if name == "splash":
        if _family(platform) != "tpu":
            return f"it is a kernel for TPUs, and the devices are {platform}"
        if head_dim % 128:
            return f"head_dim={head_dim} is no multiple of 128"
        if not block_size(length // num_context) or length % num_context:
            return (
                f"{length} positions over {num_context} device(s) of the context axis are no "
                "multiple of 128 each"
            )
    if name == "flash":
        if _family(platform) != "gpu":
            return f"it is a kernel for GPUs, and the devices are {platform}"
        if num_context > 1:
            return f"it needs whole rows, and the context axis splits them in {num_context}"
        if length % 128:
            return f"rows of {length} positions are no multiple of 128"
        if head_dim & (head_dim - 1):
            return f"head_dim={head_dim} is no power of two"
        if not _has_flash():
            return f"this jax has no {_FLASH_MODULE}, its attention that takes segment ids"
    return ""


def _has_flash() -> bool:
    try:
        return importlib.util.find_spec(_FLASH_MODULE) is not None
    except ModuleNotFoundError:
        return False


def _family(platform: str) -> str:
    return {"cuda": "gpu", "rocm": "gpu"}.get(platform, platform)
