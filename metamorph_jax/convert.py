"""Front door: `python -m metamorph_jax.convert` brings weights in and out.

    python -m metamorph_jax.convert inspect models/Llama-3.1-8B-Instruct
    python -m metamorph_jax.convert hf-to-orbax --llm=DIR --vision=DIR --out=runs/start
    python -m metamorph_jax.convert orbax-to-hf runs/vpit --out=exports/vpit --dtype=bf16

A recipe can also name Hugging Face folders itself (`model.init_from`). Read `hub/importing.py` and
`hub/exporting.py` next.
"""

import argparse
import sys
from pathlib import Path

from metamorph_jax.errors import UserError, run_main, visible
from metamorph_jax.signals import exit_on_sigterm

_PROGRAM = "python -m metamorph_jax.convert"
_MIB = 2**20


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    from metamorph_jax.config.overrides import split_arguments

    overrides, rest = split_arguments(argv)
    flags = _parse(rest)
    if overrides and getattr(flags, "config", None) is None:
        raise UserError(f"--config.{next(iter(overrides))}: there is no --config=FILE to change")
    # Heavy imports come after parsing, so that --help and typing mistakes answer at once.
    commands = {"inspect": _inspect, "hf-to-orbax": _import, "orbax-to-hf": _export}
    with exit_on_sigterm():
        return commands[flags.command](flags, overrides)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM, description="Brings weights in and out.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="what is in a Hugging Face folder")
    inspect.add_argument("folder", type=Path)
    inspect.add_argument("--vision", type=Path, help="folder of the tower that it only names")
    into = commands.add_parser(
        "hf-to-orbax",
        help="Hugging Face folders -> checkpoint",
        epilog="Any key of the recipe: --config.path.to.key=value.",
        allow_abbrev=False,
    )
    into.add_argument("--llm", type=Path, help="folder of a decoder")
    into.add_argument("--vision", type=Path, help="folder of a vision tower")
    into.add_argument("--model", type=Path, help="folder of a whole model: LLaVA, MetaMorph")
    into.add_argument("--out", type=Path, required=True, help="folder of the checkpoint to make")
    into.add_argument("--config", help="recipe whose model it is to be (default: from config.json)")
    out = commands.add_parser(
        "orbax-to-hf", help="checkpoint -> Hugging Face folder", allow_abbrev=False
    )
    out.add_argument("checkpoint", type=Path, help="folder of a run, or one checkpoint in it")
    out.add_argument("--out", type=Path, required=True, help="folder to make")
    out.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), help="default: as stored")
    for command in (inspect, into, out):
        command.add_argument("--debug", action="store_true", help="show tracebacks of user errors")
    return parser.parse_args(argv)


def _inspect(flags: argparse.Namespace, overrides: dict[str, str]) -> int:
    from metamorph_jax.hub.inspecting import inspect_folder

    lines, is_good = inspect_folder(flags.folder, flags.vision)
    print(visible("\n".join(lines)))
    return 0 if is_good else 1


def _import(flags: argparse.Namespace, overrides: dict[str, str]) -> int:
    from metamorph_jax.config.loading import load_recipe
    from metamorph_jax.hub.importing import DECODER
    from metamorph_jax.hub.inspecting import describe_model
    from metamorph_jax.hub.to_checkpoint import (
        TOWER,
        Plan,
        check_holds,
        import_checkpoint,
        infer_plan,
        num_bytes,
    )

    if (flags.model is None) == (flags.llm is None):
        raise UserError("name what to import: --llm=DIR and --vision=DIR, or --model=DIR")
    for flag, path, part in (("--llm", flags.llm, DECODER), ("--vision", flags.vision, TOWER)):
        if path is not None:
            check_holds(flag, path, part)
    folders = [path for path in (flags.model, flags.llm, flags.vision) if path is not None]
    if flags.config is None:
        plan = infer_plan(folders, flags.out)
    else:
        plan = Plan(load_recipe(flags.config, overrides))
    print(describe_model(plan.run.model), flush=True)
    with _Bytes("import", num_bytes(plan.run.model)) as progress:
        checkpoint, line = import_checkpoint(plan, folders, flags.out, progress.add)
    print(line)
    print(f"{checkpoint}: verified when it is read; begin from it with model.init_from")
    return 0


def _export(flags: argparse.Namespace, overrides: dict[str, str]) -> int:
    from metamorph_jax.hub.from_checkpoint import DTYPES, export_checkpoint, open_checkpoint

    trained = open_checkpoint(flags.checkpoint)
    dtype = None if flags.dtype is None else DTYPES[flags.dtype]
    with _Bytes("export", None) as progress:
        export_checkpoint(trained, flags.out, dtype, progress.set)
    print(f"{flags.out}: step {trained.meta.step} of {trained.run.name}; README.md there loads it")
    return 0


class _Bytes:
    """A progress line in MiB."""

    def __init__(self, label: str, total: int | None):
        self._label, self._total, self._done = label, total, 0
        self._line = None

    def __enter__(self) -> "_Bytes":
        return self

    def __exit__(self, *_) -> None:
        if self._line is not None:
            self._line.close()

    def add(self, num_bytes: int) -> None:
        """Takes note of more bytes."""
        self.set(self._done + num_bytes, self._total or 0)

    def set(self, done: int, total: int) -> None:
        """Takes note of how many bytes of how many are done."""
        from metamorph_jax.metrics.progress import Progress

        if self._line is None:
            interval = max(1, total // _MIB // 20)
            self._line = Progress(total // _MIB, "MiB", log_interval=interval, label=self._label)
        if done // _MIB != self._done // _MIB or done >= total:
            self._line.update(done // _MIB)
        self._done = done


if __name__ == "__main__":
    run_main(main, sys.argv[1:])
