import dataclasses
import functools
import logging
import os
import time

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metamorph_jax.checkpoints.store import CheckpointStore
from metamorph_jax.errors import UserError
from tests.unit.checkpoints.examples import (
    abstract,
    assert_same,
    make_meta,
    make_params,
    make_state,
)


def _save(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        store.save(step, make_state(step), make_meta(step))
    store.wait()


def test_round_trip_is_bitwise_and_keeps_classes(tmp_path):
    _save(CheckpointStore(tmp_path), 3)
    state, meta = CheckpointStore(tmp_path).restore(abstract(make_state(0)))
    assert_same(state, make_state(3))
    assert meta == make_meta(3)


def test_special_floats_survive(tmp_path):
    values = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38], np.float32)
    state = {"params": {"w": jnp.asarray(values), "h": jnp.asarray(values, jnp.bfloat16)}}
    store = CheckpointStore(tmp_path)
    store.save(1, state, make_meta(1))
    restored, _ = store.restore(abstract(state))
    assert_same(restored, state)


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: tuple


def test_dataclass_state_and_state_without_a_class_share_checkpoints(tmp_path):
    plain = {key: make_state(4)[key] for key in ("step", "params", "opt_state")}
    store = CheckpointStore(tmp_path)
    store.save(4, State(**plain), make_meta(4))
    assert_same(store.restore(abstract(State(**plain)))[0], State(**plain))
    assert_same(store.restore(abstract(plain))[0], plain)


def test_directory_without_checkpoints(tmp_path):
    for directory in (tmp_path, tmp_path / "absent"):
        store = CheckpointStore(directory)
        assert store.restore(abstract(make_state(0))) is None
        assert store.read_meta() is None
        assert store.steps() == []
        with pytest.raises(UserError, match="no checkpoint in"):
            store.restore_params(abstract(make_params(0)))
        store.wait()


@pytest.mark.parametrize(("keep", "kept"), [(2, [5, 4]), (3, [5, 4, 3])])
def test_the_newest_are_kept(tmp_path, keep, kept):
    store = CheckpointStore(tmp_path, keep=keep)
    _save(store, 1, 2, 3, 4, 5)
    assert store.steps() == kept
    assert sorted(os.listdir(tmp_path)) == [f"{step:08d}" for step in reversed(kept)]


def test_fewer_than_two_are_refused(tmp_path):
    with pytest.raises(UserError, match="at least 2"):
        CheckpointStore(tmp_path, keep=1)


def test_saving_a_step_again_replaces_it(tmp_path):
    store = CheckpointStore(tmp_path)
    _save(store, 1, 2)
    store.save(2, make_state(20), make_meta(2))
    state, _ = store.restore(abstract(make_state(0)))
    assert_same(state, make_state(20))
    assert sorted(os.listdir(tmp_path)) == ["00000001", "00000002"]


def test_going_on_from_an_earlier_step_sets_the_later_ones_aside(tmp_path):
    _save(CheckpointStore(tmp_path), 10, 20)
    store = CheckpointStore(tmp_path)
    store.restore(abstract(make_state(0)), step=10)
    _save(store, 15)
    assert store.steps() == [15, 10]
    assert "00000020.superseded-1" in os.listdir(tmp_path)
    assert CheckpointStore(tmp_path).read_meta().step == 15


def test_the_state_may_be_donated_at_once(tmp_path):
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    state = step({"params": {"w": jnp.zeros((512, 512)), "v": jnp.zeros(7)}})
    jax.block_until_ready(step({"params": {"w": jnp.zeros((512, 512)), "v": jnp.zeros(7)}}))
    store = CheckpointStore(tmp_path)
    shapes = abstract(state)
    store.save(1, state, make_meta(1))
    for _ in range(20):
        state = step(state)
    jax.block_until_ready(state)
    restored, _ = store.restore(shapes)
    assert np.unique(restored["params"]["w"]) == [1.0]
    # ... and what is restored may be donated, too.
    assert float(step(restored)["params"]["v"][0]) == 2.0


def test_saving_three_megabytes_holds_the_caller_up_only_briefly(tmp_path):
    state = {"params": {f"w{i}": jnp.ones((160, 160)) * i for i in range(30)}}
    store = CheckpointStore(tmp_path)
    seconds = []
    for step in range(1, 6):
        store.wait()
        start = time.perf_counter()
        store.save(step, state, make_meta(step))
        seconds.append(time.perf_counter() - start)
    store.wait()
    # 30 ms on an idle machine; the smallest of five, because others use this one as well.
    assert min(seconds) < 0.1


def test_meta_must_be_of_the_same_step(tmp_path):
    with pytest.raises(ValueError, match=r"meta\.step=2"):
        CheckpointStore(tmp_path).save(1, make_state(1), make_meta(2))


def test_parameters_alone_in_another_dtype(tmp_path):
    _save(CheckpointStore(tmp_path), 1, 2)
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), make_params(0))
    params, meta = CheckpointStore(tmp_path).restore_params(wanted)
    assert meta.step == 2
    assert_same(params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_params(2)))
    params, meta = CheckpointStore(tmp_path).restore_params(abstract(make_params(0)), step=1)
    assert_same(params, make_params(1))


def test_checkpoint_of_another_model_is_refused_before_it_is_read(tmp_path):
    store = CheckpointStore(tmp_path)
    _save(store, 1)
    # 4 TB: allocating it first would not end in a UserError.
    other = abstract(make_state(0))
    other["params"]["connector"]["layers_0"]["kernel"] = jax.ShapeDtypeStruct(
        (1_000_000, 1_000_000), jnp.float32
    )
    pattern = r"float32\[8,16\] stored, float32\[1000000,1000000\] wanted"
    with pytest.raises(UserError, match=pattern):
        store.restore(other)
    with pytest.raises(UserError, match=pattern):
        store.restore_params(other["params"])
    del other["params"]["connector"]
    with pytest.raises(UserError, match="2 in the checkpoint, unknown to this run"):
        store.restore_params(other["params"])


def test_a_save_that_cannot_start_is_logged_and_the_second_in_a_row_stops_the_run(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way of the directory")
    store = CheckpointStore(tmp_path / "file" / "checkpoints")
    save = functools.partial(store.save, 1, make_state(1), make_meta(1))
    with caplog.at_level(logging.ERROR):
        save()
    assert "step 1 was not saved" in caplog.text
    save()
    with pytest.raises(UserError, match="was not saved"):
        save()


def test_wait_does_not_hide_a_failed_save(tmp_path):
    (tmp_path / "file").write_text("in the way of the directory")
    store = CheckpointStore(tmp_path / "file" / "checkpoints")
    store.save(1, make_state(1), make_meta(1))
    with pytest.raises(UserError, match="was not saved"):
        store.wait()


def test_a_format_from_the_future_is_neither_read_nor_renamed(tmp_path, monkeypatch):
    monkeypatch.setattr("metamorph_jax.checkpoints.manifest.FORMAT_VERSION", 2)
    store = CheckpointStore(tmp_path)
    store.save(1, make_state(1), dataclasses.replace(make_meta(1), format_version=2))
    store.wait()
    monkeypatch.undo()
    with pytest.raises(UserError, match="format version 2, this metamorph_jax reads version 1"):
        CheckpointStore(tmp_path).restore(abstract(make_state(0)))
    assert os.listdir(tmp_path) == ["00000001"]
