"""Tensors of theirs from parameters of ours, made in the pieces in which they are stored."""

import os

import ml_dtypes
import numpy as np
import pytest

from metamorph_jax.checkpoints import arrays
from metamorph_jax.checkpoints.streaming import open_params, write_params
from metamorph_jax.hub import metamorph, tensor_writer
from metamorph_jax.hub.exporting import tensors_to_write
from metamorph_jax.hub.importing import ArraySource
from metamorph_jax.hub.tensor_files import TensorFolder
from metamorph_jax.hub.tensor_writer import TensorToWrite, write_folder
from metamorph_jax.hub.vocabulary import extend_rows
from metamorph_jax.trees import flatten
from tests.model_helpers import random_params
from tests.tiny import tiny_model
from tests.unit.checkpoints.examples import make_meta

MODEL = tiny_model()
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture
def params(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "_CHUNK_BYTES", 1000)  # so that every array has many pieces
    sources = {name: ArraySource(value) for name, value in flatten(random_params(MODEL)).items()}
    return open_params(write_params(tmp_path / "checkpoints", sources, make_meta(0)))


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)])
def test_tables_in_pieces_are_the_same_and_grow_by_their_mean(tmp_path, params, dtype):
    rows = MODEL.llm.vocab_size + 3
    tensors = tensors_to_write(MODEL, params, "native", dtype, rows)
    (tmp_path / "hf").mkdir()
    write_folder(tmp_path / "hf", tensors)
    found = TensorFolder(tmp_path / "hf")
    for name, value in metamorph.to_hf(random_params(MODEL), MODEL, "native").items():
        value = value.astype(dtype)
        value = extend_rows(value, 3) if name in TABLES else value
        np.testing.assert_array_equal(found.read(name), value, err_msg=name)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_never_whole_in_memory(params, name):
    pieces = list(tensors_to_write(MODEL, params, "native", None)[name].create())
    assert max(map(len, pieces)) < MODEL.llm.vocab_size == sum(map(len, pieces))


def test_what_is_forced_to_disk_in_between_stays_as_it_was(tmp_path, monkeypatch):
    sizes, fsync = [], os.fsync

    def note(descriptor):
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(tensor_writer, "_SETTLE_BYTES", 1000)
    monkeypatch.setattr(os, "fsync", note)
    values = {str(i): np.full((10, 20), i, np.float32) for i in range(5)}
    lazy = {n: TensorToWrite(v.shape, v.dtype, lambda v=v: v) for n, v in values.items()}
    write_folder(tmp_path, lazy)
    assert len(set(sizes)) == 3  # after two tensors, four, and all
    found = TensorFolder(tmp_path)
    for name, value in values.items():
        np.testing.assert_array_equal(found.read(name), value)
