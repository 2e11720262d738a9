"""Who may import whom (docs/design.md), read from the sources."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "metamorph_jax"
EVERYWHERE = {"config", "errors", "signals", "trees", "typing"}
ROOMS = {
    "config": set(),
    "ops": set(),
    "sharding": {"ops"},
    "models": {"ops", "sharding"},
    "objectives": {"ops", "sharding"},
    "optim": {"ops"},
    "metrics": {"ops"},
    "data": set(),
    "runtime": set(),
    "checkpoints": {"sharding", "runtime"},
    "hub": {"checkpoints", "data", "models", "sharding"},
    "training": {
        "models",
        "ops",
        "objectives",
        "optim",
        "data",
        "checkpoints",
        "hub",
        "metrics",
        "runtime",
        "sharding",
    },
    "planning": {"metrics", "models", "sharding", "training"},
    "decoding": {"models", "data", "checkpoints", "sharding", "ops"},
    "visualizer": {"data", "hub", "metrics"},
    "report": {"decoding", "data", "checkpoints", "metrics", "models", "sharding", "visualizer"},
}
ONLY_IN = {
    "flax.linen": {"models"},
    "torch": {"visualizer", "hub"},
    "diffusers": {"visualizer"},
    "tensorflow": set(),
    "orbax": {"checkpoints"},
    "ml_collections": {"config"},
}
LIGHT = [
    "metamorph_jax.config",
    "metamorph_jax.train",
    "metamorph_jax.plan",
    "metamorph_jax.hub.configs",
]
NO_JAX = {"config", "data", "visualizer"}
# Copied into exported folders, where there is no package around them.
REMOTE = PACKAGE / "hub" / "remote"


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """Returns the room of a module, or "" for a front door at the top."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def imports(path: Path) -> set[str]:
    """Returns every dotted name that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                is_beside = path.parent == REMOTE and node.level == 1
                assert is_beside, f"{path}:{node.lineno}: relative import"
                continue
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_under(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_what_its_room_may(path):
    room = room_of(path)
    for name in imports(path):
        for package, rooms in ONLY_IN.items():
            if is_under(name, package):
                assert room in rooms, f"{name} belongs to {sorted(rooms)}"
        if room in NO_JAX:
            assert not is_under(name, "jax"), f"{room} never imports jax"
        parts = name.split(".")
        if room and parts[0] == "metamorph_jax" and len(parts) > 1:
            allowed = ROOMS[room] | EVERYWHERE | {room}
            assert parts[1] in allowed, f"{room} may not import {name}"


@pytest.mark.parametrize("path", sorted(REMOTE.glob("*.py")), ids=lambda path: path.name)
def test_remote_code_knows_nothing_of_the_package(path):
    allowed = {"torch", "transformers", "numpy", "PIL", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imports(path)} <= allowed


@pytest.mark.parametrize("module", LIGHT)
def test_import_is_light(module):
    heavy = "{'jax', 'torch', 'orbax'}"
    code = f"import sys, {module}; sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_training_needs_neither_torch_nor_tensorflow():
    code = (
        "import sys, metamorph_jax.training.loop, metamorph_jax.decoding.generator;"
        "sys.exit(' '.join({'torch', 'tensorflow'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
