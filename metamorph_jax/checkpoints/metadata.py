"""What a checkpoint says about the run that wrote it: one frozen dataclass, stored as meta.json.

The arrays' names, shapes and hashes are in manifest.json instead (manifest.py).
"""

import dataclasses
import functools
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any, Self

from metamorph_jax.errors import UserError

FORMAT_VERSION = 1
_REPORTED_PACKAGES = (
    "metamorph_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointMeta:
    """Everything but the arrays that a run needs to continue where it stopped.

    Attributes:
        format_version: of the layout on disk; readers refuse any other than their own.
        step: optimiser steps done since the start of the run, over all stages. The sample order
            is a pure function of (seed, step), so this is also the data position.
        stage: name of the stage that the state belongs to.
        stage_step: steps done in that stage.
        stage_total_steps: steps of that stage.
        data_fingerprint: of the packing plan; another one means other batches from here on.
        seed: of the run.
        mixture: the sections of the stage's data plan (data/plan.py), each with `first_step` and
            `weights`; empty: the recipe's weights from the beginning.
        recipe: the resolved recipe as text.
        model_fingerprint: `naming.tree_fingerprint` of the parameters.
        versions: of the libraries that wrote the checkpoint.
    """

    format_version: int = FORMAT_VERSION
    step: int
    stage: str
    stage_step: int
    stage_total_steps: int
    data_fingerprint: str
    seed: int
    recipe: str
    model_fingerprint: str
    versions: dict[str, str]
    mixture: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def to_json(self) -> str:
        """Returns the text of meta.json."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Self:
        """Returns what `to_json` wrote.

        Args:
            text: content of a meta.json.
            where: its path, for error messages.

        Raises:
            UserError: another format version, or fields that do not belong to this one.
        """
        values = json.loads(text)
        check_format_version(values, where)
        expected = {field.name for field in dataclasses.fields(cls)}
        optional = {"mixture"}  # since it came, the format is the same otherwise
        if not expected - optional <= values.keys() <= expected:
            raise UserError(
                f"{where}: expected the fields {sorted(expected)}, found {sorted(values)}; "
                "the file was not written by this version of metamorph_jax"
            )
        return cls(**values)


def check_format_version(values: Any, where: str) -> None:
    """Refuses a checkpoint of another format.

    Args:
        values: parsed content of meta.json or manifest.json.
        where: its path, for the message.

    Raises:
        UserError: naming both versions.
    """
    found = values.get("format_version") if isinstance(values, dict) else None
    if found != FORMAT_VERSION:
        raise UserError(
            f"{where}: checkpoint format version {found}, this metamorph_jax reads version "
            f"{FORMAT_VERSION}; use the release that wrote it (versions are in meta.json beside it)"
        )


@functools.cache
def source_commit() -> str:
    """Returns the git commit of this package's source, "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def library_versions() -> dict[str, str]:
    """Returns the versions of Python, of the libraries, and of our source (a git commit)."""
    versions = {"python": platform.python_version()}
    for package in _REPORTED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions | {"commit": source_commit()}
