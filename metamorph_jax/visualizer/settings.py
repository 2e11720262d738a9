"""How pictures are painted: the settings, and the flags that the painting commands share.

Nothing here imports torch, so that `--help` and mistakes answer at once.
"""

import argparse
import dataclasses
import os
from collections.abc import Callable
from typing import Literal, TypeVar

Number = TypeVar("Number", int, float)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaintSettings:
    """How pictures are painted; None is the visualizer's own choice.

    Attributes:
        guidance: each picture is painted once per scale; 1 follows the tokens, more exaggerates.
        num_steps: denoising steps.
        scheduler: a class of diffusers, such as DPMSolverMultistepScheduler.
        seeds: each picture is painted once per seed; the i-th of a file gets the noise of seed + i.
        size: side of the pictures in pixels.
        dtype: of the computation.
    """

    guidance: tuple[float, ...] | None = None
    num_steps: int | None = None
    scheduler: str | None = None
    seeds: tuple[int, ...] = (0,)
    size: int | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"


DEFAULTS = PaintSettings()


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `PaintSettings`, and that of the safety checker."""
    add = parser.add_argument
    add(
        "--guidance",
        type=_list_of(float),
        metavar="X[,X ...]",
        help="each picture once per scale: 1 follows the tokens, more exaggerates them (default: "
        "6,7.5,10,12.5 for Stable Diffusion, 1 for pixels)",
    )
    add("--steps", type=int, help="denoising steps (default: 50, for pixels 20)")
    add("--scheduler", help="a class of diffusers, such as DPMSolverMultistepScheduler")
    add(
        "--seeds",
        type=_list_of(int),
        default=(0,),
        metavar="N[,N ...]",
        help="each picture once per seed; picture i of a file has seed + i (default: 0)",
    )
    add("--size", type=int, help="side of the pictures in pixels (default: as trained)")
    add(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float32",
        help="of the computation; halves are for GPUs (default: float32)",
    )
    add(
        "--no_safety_checker",
        action="store_true",
        help="do not blacken what the safety checker of the Stable Diffusion folder objects to",
    )


def quiet_libraries() -> None:
    """Keeps transformers from telling of image processors that nobody here uses; call it first."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def read_settings(flags: argparse.Namespace) -> PaintSettings:
    """Returns what the flags of `add_settings` say."""
    return PaintSettings(
        guidance=flags.guidance,
        num_steps=flags.steps,
        scheduler=flags.scheduler,
        seeds=flags.seeds,
        size=flags.size,
        dtype=flags.dtype,
    )


def _list_of(kind: Callable[[str], Number]) -> Callable[[str], tuple[Number, ...]]:
    """Returns what reads "1,2" for argparse."""

    def read(text: str) -> tuple[Number, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            message = f"{text!r}: numbers with commas between were expected"
            raise argparse.ArgumentTypeError(message) from None

    return read
