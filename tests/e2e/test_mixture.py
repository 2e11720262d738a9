"""Weights of the mixture may change when a run goes on; the plan says from which step."""

import json

import pytest

from tests.e2e.world import history, make_world, train

pytestmark = pytest.mark.slow
WEIGHT = "--config.stages.vpit.data.sources.0.weight=3"


def test_new_weights_begin_where_the_run_goes_on(tmp_path):
    world = make_world(tmp_path)
    assert train(world).returncode == 0
    assert train(world, "--max_steps=30", workdir="changed").returncode == 0
    result = train(world, WEIGHT, workdir="changed")
    assert result.returncode == 0 and "resuming at step 30" in result.stdout, result.stderr
    plan = json.loads((world / "changed/data/vpit/plan.json").read_text())
    assert plan["sections"] == [
        {"first_step": 0, "weights": [1.0]},
        {"first_step": 10, "weights": [3.0]},
    ]
    changed, unbroken = history(world, "changed"), history(world)
    assert changed[:30] == unbroken[:30] and changed[30:] != unbroken[30:]
    # Anything else of the data is still refused.
    result = train(world, "--config.stages.vpit.data.max_seq_len=80", workdir="changed")
    assert result.returncode == 2 and "max_seq_len: 96 -> 80" in result.stderr
