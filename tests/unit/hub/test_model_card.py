"""The card of an export: where its weights came from."""

import dataclasses
import json

import numpy as np

from metamorph_jax.checkpoints.folders import CHECKPOINTS
from metamorph_jax.checkpoints.streaming import write_params
from metamorph_jax.config.loading import to_dict
from metamorph_jax.config.schema_run import RunConfig, TokenizerConfig
from metamorph_jax.hub.importing import ArraySource
from metamorph_jax.hub.model_card import base_licences
from tests.tiny import tiny_model
from tests.unit.checkpoints.examples import make_meta


def test_a_run_that_names_itself_is_looked_at_once(tmp_path):
    folder, base = tmp_path / "run", tmp_path / "base"
    base.mkdir()
    (base / "LICENSE").write_text("terms")
    model = dataclasses.replace(tiny_model(), init_from=(str(folder), str(base)))
    run = RunConfig(name="self", model=model, tokenizer=TokenizerConfig(path=""), stages=())
    meta = dataclasses.replace(make_meta(0), recipe=json.dumps(to_dict(run)))
    write_params(folder / CHECKPOINTS, {"x": ArraySource(np.ones(3))}, meta)
    assert base_licences(run) == [f"{base}: see its LICENSE"]
