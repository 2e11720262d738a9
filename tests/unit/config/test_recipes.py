"""What the recipes promise about the hardware that they name."""

from pathlib import Path

import pytest

from metamorph_jax.config.loading import load_recipe
from metamorph_jax.models.init import abstract_params
from metamorph_jax.optim.selection import select
from metamorph_jax.training.dry_run import mesh_sizes
from metamorph_jax.training.memory import estimate_memory
from metamorph_jax.training.program import check_batch_divides

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
USABLE_BYTES = 74 * 2**30  # of an accelerator of 80 GB


@pytest.mark.parametrize("variant", ["packed", "unpacked"])
def test_the_8b_recipe_fits_its_hardware(variant):
    config = load_recipe(f"{CONFIGS}/vpit_8b.py:{variant}")
    params, mesh = abstract_params(config.model), mesh_sizes(config)
    assert mesh == {"data": 1, "fsdp": 64, "context": 1, "tensor": 1}
    for stage in config.stages:
        check_batch_divides(stage, 64)
        rows = (0, 1) if stage.train_new_token_rows else ()
        selection = select(params, stage.trained, stage.excluded, rows, stage.name)
        needed = estimate_memory(config.model, stage, params, selection, mesh)["all"]
        assert 0 < needed < USABLE_BYTES
