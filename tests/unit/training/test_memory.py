"""The arithmetic of memory: what follows from shapes, term by term."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from metamorph_jax.config.loading import load_recipe
from metamorph_jax.models.init import abstract_params
from metamorph_jax.ops.cross_entropy import TOKENS_PER_BLOCK
from metamorph_jax.optim.selection import select
from metamorph_jax.training.activations import block_bytes, kept_bytes, loss_bytes, tower_bytes
from metamorph_jax.training.dry_run import mesh_sizes
from metamorph_jax.training.memory import estimate_memory

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
KEPT, WORK = "activations kept (estimate)", "at work (estimate)"
CASTS = "weights as they are computed with"
TOKENS, EMBED, HEADS, LAYERS = 3 * 4096, 4096, 32 * 128, 32  # of vpit_8b on v5e


def config_with(overrides=None, recipe="vpit_8b.py:v5e"):
    return load_recipe(f"{CONFIGS}/{recipe}", overrides or {})


def parts(config, stage=None, mesh=None):
    stage = config.stages[-1] if stage is None else stage
    params = abstract_params(config.model)
    rows = (0, 1) if stage.train_new_token_rows else ()
    selection = select(params, stage.trained, stage.excluded, rows, stage.name)
    return estimate_memory(config.model, stage, params, selection, mesh or mesh_sizes(config))


def llm_with(config, **changes):
    return dataclasses.replace(config.model, llm=dataclasses.replace(config.model.llm, **changes))


def kept(config, remat, tensor=1, context=1):
    return kept_bytes(llm_with(config, remat=remat), 3, config.stages[-1], tensor, context)


def test_what_a_layer_keeps_is_what_its_policy_names():
    config = config_with()
    full = LAYERS * TOKENS * EMBED * 2
    assert kept(config, "full") == full
    assert kept(config, "offload") == 0
    # The kernel's result, and of each query and head the logarithm of its sum.
    assert kept(config, "attention") == full + LAYERS * TOKENS * (HEADS * 2 + 32 * 4)
    assert kept(config, "attention", tensor=4) == full + LAYERS * TOKENS * (HEADS * 2 + 32 * 4) / 4
    assert kept(config, "full", context=2) == full / 2
    assert kept(config, "full") < kept(config, "attention") < kept(config, "dots")
    assert kept(config, "dots") < kept(config, "none")


def test_splash_holds_a_gradient_of_queries_for_each_block_of_keys():
    """2,688 positions have 7 blocks of 384, 4,096 have 4 of 1,024, and long rows have none."""
    config = config_with(recipe="llava15_13b.py:v5e")
    stage, heads = config.stages[-1], 40 * 128
    for length, blocks in ((2688, 7), (4096, 4), (8192, 8), (16384, 0)):
        data = dataclasses.replace(stage.data, max_seq_len=length)
        longer = dataclasses.replace(stage, data=data)
        with_kernel = block_bytes(config.model, 1, longer, 1, 1, True)
        other = block_bytes(llm_with(config, attention="flash"), 1, longer, 1, 1, True)
        assert with_kernel - other == blocks * length * heads * 2


def test_a_weights_gradient_waits_as_activations_or_as_a_matrix():
    """12,288 tokens are more than 4,096 dimensions, so the MLP waits as activations; 1,024 less."""
    config = config_with()
    stage, mlp = config.stages[-1], 14336
    many = [block_bytes(config.model, 3, stage, 1, 1, trained) for trained in (True, False)]
    assert many[0] == many[1]
    few = [block_bytes(config.model, 1, stage, 1, 4, trained) for trained in (True, False)]
    assert few[0] - few[1] == 3 * mlp * (EMBED - 1024) * 2


def test_tensor_parallelism_splits_all_of_a_block_but_the_stream():
    config = config_with()
    one, four = (block_bytes(config.model, 3, config.stages[-1], n, 1, True) for n in (1, 4))
    stream = 2 * TOKENS * EMBED * 2
    assert four == pytest.approx(stream + (one - stream) / 4)


def test_the_loss_holds_one_block_of_the_vocabulary():
    config = config_with()
    stage = config.stages[-1]
    sizes = []
    for entries in (4096, 8192):
        loss = dataclasses.replace(stage.loss, vocab_chunk_size=entries)
        sizes.append(loss_bytes(config.model, 3, dataclasses.replace(stage, loss=loss), 1, 1))
    assert TOKENS > TOKENS_PER_BLOCK
    assert sizes[1] - sizes[0] == 4096 * (TOKENS_PER_BLOCK * (4 + 2) + EMBED * (2 + 2 + 4))


def test_moments_do_not_add_up():
    """Without its tower a stage needs nothing less, if a block needs more than the tower."""
    config = config_with()
    stage = config.stages[-1]
    block = parts(config)[WORK]
    assert 0 < tower_bytes(config.model, 3, stage, 1) < block
    cached = dataclasses.replace(stage, data=dataclasses.replace(stage.data, features="kept"))
    assert parts(config, cached)[WORK] == block


def test_only_weights_that_are_stored_otherwise_are_cast():
    config = config_with()
    adapter, vpit = config.stages
    assert parts(config, adapter)[CASTS] == 0  # frozen, and stored in bfloat16
    blocks = abstract_params(config.model)["language_model"]["blocks"]
    sizes = [leaf.size for leaf in _leaves(blocks)]
    assert parts(config, vpit)[CASTS] == pytest.approx(sum(sizes) * 2 / 64)


def _leaves(tree):
    return (
        [leaf for node in tree.values() for leaf in _leaves(node)]
        if isinstance(tree, dict)
        else [tree]
    )


def test_what_the_rules_leave_whole_is_counted_whole():
    config = config_with()
    params = abstract_params(config.model)
    whole = sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in _leaves(params))
    sizes = mesh_sizes(config)
    alone = parts(config, mesh=dict.fromkeys(sizes, 1))
    assert parts(config)["parameters"] > alone["parameters"] / 64
    assert alone["parameters"] < whole  # frozen parameters have half the bytes


def test_the_sum_is_that_of_the_parts():
    held = parts(config_with())
    assert held["all"] == pytest.approx(sum(v for name, v in held.items() if name != "all"))
