"""The parameters a run begins with: from the folders that the recipe names, or at random.

Each array is born on its devices: a process reads of a file only what its own devices hold.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.errors import UserError
from metamorph_jax.hub.importing import NanWatch, Source, find_sources
from metamorph_jax.models.init import abstract_params, init_some
from metamorph_jax.sharding.rules import ShardingRules
from metamorph_jax.training.state import param_shardings
from metamorph_jax.trees import flatten
from metamorph_jax.typing import PyTree


def create_params(
    config: ModelConfig,
    seed: int,
    mesh: Mesh,
    rules: ShardingRules | None = None,
    part: str | None = None,
) -> PyTree:
    """Returns the parameters of a new run, each born on its devices.

    Args:
        config: of the model.
        seed: of what begins at random.
        mesh: of the devices.
        rules: how parameters lie on it; None: the default ones.
        part: of the model, as "vision_tower", if only that is wanted; None: all.

    Raises:
        UserError: a folder of `config.init_from` cannot be used, or does not fit `config`.
    """
    shapes = _only(part, abstract_params(config))
    shardings = flatten(_only(part, param_shardings(config, mesh, rules or ShardingRules())))
    watch = NanWatch()
    sources = {
        name: source for name, source in check_sources(config, watch).items() if name in shardings
    }
    fresh = {name: sharding for name, sharding in shardings.items() if name not in sources}
    named = jax.jit(lambda key: init_some(config, key, fresh), out_shardings=fresh)(
        jax.random.key(seed)
    )
    for name, source in sources.items():
        named[name] = jax.make_array_from_callback(source.shape, shardings[name], source.read)
    watch.warn()
    if sources:
        print(describe_sources(sources, fresh), flush=True)
    return jax.tree.unflatten(jax.tree.structure(shapes), [named[name] for name in flatten(shapes)])


def _only(part: str | None, tree: PyTree) -> PyTree:
    return tree if part is None else {part: tree[part]}


def check_sources(config: ModelConfig, watch: NanWatch | None = None) -> dict[str, Source]:
    """Returns where a new run's parameters come from, having read headers only.

    Raises:
        UserError: a folder of `config.init_from` cannot be used, or does not fit `config`.
    """
    if not config.init_from:
        return {}
    sources = find_sources(config, [Path(path) for path in config.init_from], watch or NanWatch())
    shapes = flatten(abstract_params(config))
    for name, source in sources.items():
        if name not in shapes or tuple(source.shape) != shapes[name].shape:
            raise UserError(
                f"model.init_from: {name} {list(source.shape)} is not what the recipe's model has "
                f"({list(shapes[name].shape) if name in shapes else 'nothing of that name'}); "
                "use the recipe that wrote it, or other sizes"
            )
    return sources


def describe_sources(sources: Mapping[str, Source], fresh: Mapping[str, object]) -> str:
    """Returns one line on what was read and what begins at random."""
    num_read = sum(int(np.prod(source.shape)) for source in sources.values())
    parts = sorted({name.split("/")[0] for name in fresh})
    return f"initial weights: {num_read:,} read; at random: {', '.join(parts) or 'none'}"
