"""Front door: `python -m metamorph_jax.train --config=configs/digits.py` trains all stages.

Other leaves of the recipe are set with `--config.path.to.key=value`. Read `training/loop.py` next.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from metamorph_jax.errors import UserError, run_main

if TYPE_CHECKING:
    from metamorph_jax.config.schema_run import RunConfig


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m metamorph_jax.train",
        description="Trains all stages of a recipe, resuming where an earlier run stopped.",
        epilog="Any key of the recipe: --config.path.to.key=value (see --print_config).",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="recipe: configs/NAME.py or NAME.py:arg")
    parser.add_argument("--workdir", type=Path, help="where the run is kept (default: runs/NAME)")
    parser.add_argument(
        "--resume", default="auto", help="auto (default), never, must, or a step number"
    )
    parser.add_argument("--max_steps", type=int, help="stop after this many steps in all")
    parser.add_argument(
        "--profile", help="FIRST:LAST: trace these steps of the run into WORKDIR/profile (xprof)"
    )
    parser.add_argument(
        "--print_config", action="store_true", help="print the resolved recipe and exit"
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="check; print parameters, arithmetic, memory, a sample; allocate nothing",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks of user errors")
    if "-h" in argv or "--help" in argv:
        parser.parse_args(argv)
    from metamorph_jax.config.loading import load_recipe, to_text
    from metamorph_jax.config.overrides import split_arguments

    overrides, rest = split_arguments(argv)
    flags = parser.parse_args(rest)
    config = load_recipe(flags.config, overrides)
    if not config.stages:
        raise UserError(f"--config={flags.config}: stages is empty; a run needs at least one")
    if flags.print_config:
        print(to_text(config))
        return 0
    if flags.dry_run:
        from metamorph_jax.training.dry_run import dry_run

        dry_run(config)
        return 0
    from metamorph_jax.runtime.compile_cache import keep_compiled
    from metamorph_jax.runtime.joining import joined

    keep_compiled()
    with joined():
        return _train(config, flags)


def _train(config: "RunConfig", flags: argparse.Namespace) -> int:
    from metamorph_jax.runtime.profile import parse_span
    from metamorph_jax.training.loop import train

    workdir = flags.workdir or Path("runs") / config.name
    span = parse_span(flags.profile) if flags.profile else None
    return train(config, workdir, resume=flags.resume, max_steps=flags.max_steps, profile=span)


if __name__ == "__main__":
    run_main(main)
