"""Recipe file -> dataclass, and dataclass -> text that is stored beside every checkpoint.

A recipe is a Python file with `get_config()` or `get_config(arg)`, which returns an
`ml_collections.ConfigDict` (`--config=configs/digits.py:arg`). This is the only module that knows
about ConfigDict.
"""

import contextlib
import copy
import dataclasses
import inspect
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from metamorph_jax.config.build import build_dataclass
from metamorph_jax.config.overrides import apply_overrides, split_arguments
from metamorph_jax.config.schema_run import RunConfig
from metamorph_jax.errors import UserError

Schema = TypeVar("Schema")


def load_recipe(
    spec: str, overrides: Mapping[str, str] | None = None, cls: type[Schema] = RunConfig
) -> Schema:
    """Returns the recipe `spec` ("configs/NAME.py" or "configs/NAME.py:arg") as a `cls`.

    Args:
        spec: path of the file, and what its get_config receives.
        overrides: text values by dotted path, as typed after `--config.`.
        cls: the dataclass to read it into.

    Raises:
        UserError: the file is missing, has no get_config, raises (FILE:LINE), or has mistakes (all
            are listed).
    """
    values = _call_get_config(spec)
    problems = apply_overrides(values, dict(overrides or {}))
    return build_dataclass(cls, values, problems=problems)


def load_from_arguments(
    argv: Sequence[str], cls: type[Schema] = RunConfig
) -> tuple[Schema, list[str]]:
    """Returns (recipe, arguments that are not about the recipe) of a command line.

    Raises:
        UserError: `--config=FILE` is missing, or as in `load_recipe`.
    """
    overrides, rest = split_arguments(argv)
    specs = [argument.removeprefix("--config=") for argument in rest if "--config=" in argument]
    if len(specs) != 1:
        raise UserError(
            f"--config=FILE.py is needed exactly once, got it {len(specs)} times; "
            "for example --config=configs/digits.py"
        )
    others = [argument for argument in rest if not argument.startswith("--config=")]
    return load_recipe(specs[0], overrides, cls), others


def to_text(config: Any, path: str = "config") -> str:
    """Returns `config` (a dataclass) as sorted `dotted.path = value` lines."""
    lines = []
    for key, value in _items(config):
        where = f"{path}.{key}"
        nested = dataclasses.is_dataclass(value) or (
            isinstance(value, tuple) and any(dataclasses.is_dataclass(item) for item in value)
        )
        lines.append(to_text(value, where) if nested else f"{where} = {value!r}")
    return "\n".join(sorted(line for block in lines for line in block.splitlines()))


def to_dict(config: Any) -> Any:
    """Returns `config` as nested dicts and lists, ready for JSON and for `from_dict`."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any], cls: type[Schema] = RunConfig) -> Schema:
    """Returns the dataclass that `to_dict` wrote (a checkpoint's recipe, say)."""
    return build_dataclass(cls, values)


def _items(config: Any) -> list[tuple[str, Any]]:
    """Returns (name, value) pairs of a dataclass or of a tuple of them."""
    if isinstance(config, tuple):
        return [(getattr(item, "name", str(i)), item) for i, item in enumerate(config)]
    return [(field.name, getattr(config, field.name)) for field in dataclasses.fields(config)]


def _call_get_config(spec: str) -> dict[str, Any]:
    """Runs the recipe file; returns what its get_config returns, as plain dicts and lists."""
    file, _, argument = spec.partition(":")
    path = Path(file)
    if not path.is_file():
        here = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise UserError(
            f"--config={spec}: {file} is no file"
            + (f"; recipes there: {', '.join(here)}" if here else "")
        )
    with _recipe_mistakes(path):
        get_config = _run_file(path).get("get_config")
    if not callable(get_config):
        raise UserError(f"{file}: expected a function get_config(), found none")
    if argument and not inspect.signature(get_config).parameters:
        raise UserError(f"--config={spec}: get_config() of {file} takes no argument")
    if not argument:
        _check_needs_no_argument(get_config, path)
    with _recipe_mistakes(path):
        values = _plain(get_config(argument) if argument else get_config())
    if not isinstance(values, dict):
        raise UserError(
            f"{file}: get_config() returned {values!r} ({type(values).__name__}), "
            "expected a ConfigDict; is a `return config` missing?"
        )
    return values


def _check_needs_no_argument(get_config: Callable, path: Path) -> None:
    """Raises a UserError if get_config cannot be called without its argument."""
    try:
        inspect.signature(get_config).bind()
    except TypeError as error:
        raise UserError(
            f"{path}:{get_config.__code__.co_firstlineno}: TypeError: get_config(): {error}; "
            f"write --config={path}:ARGUMENT"
        ) from None


def _run_file(path: Path) -> dict[str, Any]:
    """Executes a recipe with its own repository root importable (for `configs.pieces`)."""
    root = str(path.resolve().parent.parent)
    sys.path.insert(0, root)
    try:
        return runpy.run_path(str(path))
    finally:
        sys.path.remove(root)


@contextlib.contextmanager
def _recipe_mistakes(path: Path) -> Iterator[None]:
    """Turns what a recipe raises into a UserError with the line of the recipe."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename or path}:{error.lineno}: {error.msg}") from error
    except Exception as error:  # the recipe is the user's own program: anything can come out of it
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        where = f"{path}:{lines[-1]}" if lines else str(path)
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error


def _plain(value: Any) -> Any:
    """Returns ConfigDicts, dataclasses and sequences as fresh dicts and lists."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if dataclasses.is_dataclass(value):
        return {name: _plain(item) for name, item in _items(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return copy.copy(value)
