"""What the recipes promise about the hardware that they name."""

import itertools
from pathlib import Path

import pytest

from metamorph_jax.config.loading import load_recipe
from metamorph_jax.models.init import abstract_params
from metamorph_jax.optim.selection import select
from metamorph_jax.training.dry_run import mesh_sizes
from metamorph_jax.training.memory import estimate_memory
from metamorph_jax.training.program import check_batch_divides, check_row_length

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
GIB = 2**30
# Bytes of a device; at least 8 % are to spare by the arithmetic.
MEMORY = {
    "any": 80e9,
    "v4": 32 * GIB,
    "v5e": 16 * GIB,
    "v5p": 95 * GIB,
    "v6e": 32 * GIB,
    "h100": 80e9,
    "h200": 141e9,
}
RECIPES = {
    "vpit_8b": ("packed", "unpacked"),
    "vpit_70b": ("packed", "unpacked"),
    "llava15_7b": ("projector", "instruct", "instruct,unpacked"),
    "llava15_13b": ("projector", "instruct", "instruct,unpacked"),
}
CASES = [
    (name, place, variant)
    for name, variants in RECIPES.items()
    for place, variant in itertools.product(MEMORY, variants)
    if place != "any" or name == "vpit_8b"
]


def needed_bytes(config, stage):
    params = abstract_params(config.model)
    rows = (0, 1) if stage.train_new_token_rows else ()
    selection = select(params, stage.trained, stage.excluded, rows, stage.name)
    return estimate_memory(config.model, stage, params, selection, mesh_sizes(config))["all"]


@pytest.mark.parametrize(("name", "place", "variant"), CASES)
def test_recipes_fit_their_hardware(name, place, variant):
    config = load_recipe(f"{CONFIGS}/{name}.py:{place},{variant}")
    sizes = mesh_sizes(config)
    for stage in config.stages:
        check_batch_divides(stage, sizes["data"] * sizes["fsdp"])
        check_row_length(config.model, stage)
        assert stage.data.max_seq_len % (128 * sizes["context"]) == 0
        assert 0 < needed_bytes(config, stage) < 0.92 * MEMORY[place]


def test_the_batch_and_the_rates_are_the_papers_on_all_hardware():
    for place in MEMORY:
        adapter, vpit = load_recipe(f"{CONFIGS}/vpit_8b.py:{place},unpacked").stages
        assert (adapter.global_batch_size, vpit.global_batch_size) == (768, 1536)
        assert (adapter.optimizer.learning_rate, vpit.optimizer.learning_rate) == (4.9e-5, 6.93e-5)


def test_words_come_in_any_order():
    first = load_recipe(f"{CONFIGS}/vpit_8b.py:unpacked,v5e")
    assert first == load_recipe(f"{CONFIGS}/vpit_8b.py:v5e,unpacked")
    assert first.model.llm.attention == "splash"
