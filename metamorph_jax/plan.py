"""Front door: `python -m metamorph_jax.plan --config=RECIPE --topology=v5p:4x4x4` plans a run.

Compiles the real train step for a pod that is not here and says what it needs. Read
`planning/plan.py` next; docs/scaling.md says how to read the answer.
"""

import argparse
import json
import os
from pathlib import Path

from metamorph_jax.errors import UserError, run_main

DOES_NOT_FIT = 1


def main(argv: list[str]) -> int:
    """Runs the command line; returns 0 if every stage fits, 1 if one does not."""
    parser = argparse.ArgumentParser(
        prog="python -m metamorph_jax.plan",
        description="Says what a recipe needs on a machine that is not here: memory, FLOPs, "
        "exchanges, time; and whether it fits.",
        epilog="Any key of the recipe: --config.path.to.key=value.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="recipe: configs/NAME.py or NAME.py:arg")
    parser.add_argument(
        "--topology",
        required=True,
        help="pod to plan for: v5p:4x4x4, v5e:8x8 (TPUs, compiled) or h200:8 (GPUs, counted)",
    )
    parser.add_argument("--stage", help="plan this stage only (default: all)")
    parser.add_argument(
        "--sweep", action="store_true", help="also rank other micro-batches, remat and meshes"
    )
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--plot", type=Path, help="draw memory and times into this PNG file")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of user errors")
    if "-h" in argv or "--help" in argv:
        parser.parse_args(argv)
    from metamorph_jax.config.loading import load_recipe
    from metamorph_jax.config.overrides import split_arguments

    overrides, rest = split_arguments(argv)
    flags = parser.parse_args(rest)
    config = load_recipe(flags.config, overrides)
    stages = _chosen(config, flags.stage)
    # Nothing runs on a device here; looking for a TPU that is not there takes minutes.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    return _plan(config, stages, flags)


def _chosen(config, name: str | None) -> list:
    """Returns the stages to plan."""
    stages = [stage for stage in config.stages if name in (None, stage.name)]
    if not stages:
        names = ", ".join(stage.name for stage in config.stages) or "none"
        raise UserError(f"--stage={name}: the recipe {config.name} has the stages: {names}")
    return stages


def _plan(config, stages: list, flags: argparse.Namespace) -> int:
    from metamorph_jax.planning.plan import check_recipe, plan_stage
    from metamorph_jax.planning.report import as_json, describe
    from metamorph_jax.planning.topology import find_pod

    pod = find_pod(flags.topology)
    check_recipe(config, stages, pod)
    plans = []
    for stage in stages:
        plans.append(plan_stage(config, stage, pod))
        print(describe(config, plans[-1]), flush=True)
    if flags.json:
        flags.json.write_text(json.dumps(as_json(config, plans), indent=1) + "\n")
    if flags.plot:
        from metamorph_jax.planning.plot import save_plot

        save_plot(flags.plot, plans)
    if flags.sweep:
        from metamorph_jax.planning.sweep import sweep, table

        for stage in stages:
            print(f"other choices for {stage.name}, best first", flush=True)
            print(table(sweep(config, stage, pod)), flush=True)
    return 0 if all(plan.fits for plan in plans) else DOES_NOT_FIT


if __name__ == "__main__":
    run_main(main)
