"""A run that begins from a Hugging Face folder, on several meshes of faked devices."""

import dataclasses

import jax
import numpy as np
import pytest

from metamorph_jax.config.schema_run import MeshConfig
from metamorph_jax.hub import metamorph
from metamorph_jax.sharding.mesh import create_mesh
from metamorph_jax.training.initial import create_params
from metamorph_jax.trees import flatten
from tests.hub_folders import write_model
from tests.model_helpers import random_params
from tests.tiny import tiny_model

MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2)]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_each_device_gets_its_part_of_the_file(tmp_path, sizes):
    model = tiny_model()
    tensors = metamorph.to_hf(random_params(model), model)
    folder = write_model(tmp_path / "hf", model, tensors)
    data, fsdp, tensor = sizes
    mesh = create_mesh(
        MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: np.prod(sizes)]
    )
    config = dataclasses.replace(model, init_from=(str(folder),))
    params = flatten(create_params(config, 0, mesh))
    for name, value in flatten(metamorph.from_hf(tensors, model)).items():
        np.testing.assert_array_equal(params[name], value, err_msg=name)
    kernel = params["language_model/blocks/mlp/up/kernel"]
    shard = kernel.addressable_shards[0].data.shape
    assert shard == (2, 16 // min(fsdp, 16), 32 // tensor)
