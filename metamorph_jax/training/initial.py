"""The parameters a run begins with: from the folders that the recipe names, or at random.

Each array is born on its devices: a process reads of a file only what its own devices hold.
"""

from collections.abc import Collection
from pathlib import Path

import jax
from jax.sharding import Mesh

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.data.tokenizer import Tokenizer, has_tokenizer, load_tokenizer
from metamorph_jax.hub.importing import NanWatch, describe_sources, find_sources
from metamorph_jax.hub.runs import is_run
from metamorph_jax.models.init import abstract_params, init_some
from metamorph_jax.runtime.agreement import is_first
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
    new_ids: Collection[int] = (),
) -> PyTree:
    """Returns the parameters of a new run, each born on its devices.

    Args:
        config: of the model.
        seed: of what begins at random.
        mesh: of the devices.
        rules: how parameters lie on it; None: the default ones.
        part: of the model, as "vision_tower", if only that is wanted; None: all.
        new_ids: tokens that a pretrained decoder does not know yet, see `new_token_ids`.

    Raises:
        UserError: a folder of `config.init_from` cannot be used, or does not fit `config`.
    """
    shapes = _only(part, abstract_params(config))
    shardings = flatten(_only(part, param_shardings(config, mesh, rules or ShardingRules())))
    watch = NanWatch()
    sources = {
        name: source
        for name, source in find_sources(config, config.init_from, watch, new_ids).items()
        if name in shardings
    }
    fresh = {name: sharding for name, sharding in shardings.items() if name not in sources}
    named = jax.jit(lambda key: init_some(config, key, fresh), out_shardings=fresh)(
        jax.random.key(seed)
    )
    for name, source in sources.items():
        named[name] = jax.make_array_from_callback(source.shape, shardings[name], source.read)
    watch.warn()
    if sources and is_first():
        print(describe_sources(sources, shardings), flush=True)
    return jax.tree.unflatten(jax.tree.structure(shapes), [named[name] for name in flatten(shapes)])


def _only(part: str | None, tree: PyTree) -> PyTree:
    return tree if part is None else {part: tree[part]}


def check_sources(config: ModelConfig) -> None:
    """Raises a UserError if a folder of `config.init_from` does not fit; reads headers only."""
    find_sources(config, config.init_from, NanWatch(), verify=False)


def new_token_ids(config: ModelConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the image tokens that the tokenizer of a decoder's own folder does not have."""
    special = tokenizer.special
    ids = [id_ for id_ in (special.image_start, special.image_end) if id_ is not None]
    known = [
        load_tokenizer(folder).vocab_size
        for folder in config.init_from
        if not is_run(Path(folder)) and has_tokenizer(folder)
    ]
    return tuple(id_ for id_ in ids if known and id_ >= min(known))
