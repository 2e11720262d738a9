"""Damage of every kind to every file: found, set aside, and the previous checkpoint used."""

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from metamorph_jax.checkpoints.store import CheckpointStore
from metamorph_jax.errors import UserError
from tests.unit.checkpoints.examples import abstract, assert_same, make_meta, make_state


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A directory with the checkpoints 1 and 2."""
    directory = tmp_path_factory.mktemp("pristine") / "checkpoints"
    store = CheckpointStore(directory)
    for step in (1, 2):
        store.save(step, make_state(step), make_meta(step))
    store.wait()
    return directory


@pytest.fixture
def directory(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "checkpoints"))


def _files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _remove(path: Path) -> None:
    path.unlink()


def _truncate_to_nothing(path: Path) -> None:
    os.truncate(path, 0)


def _truncate_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _truncate_last_byte(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def _flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    position = np.random.default_rng(len(content)).integers(8 * len(content))
    content[position // 8] ^= 1 << (position % 8)
    path.write_bytes(content)


def _dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


DAMAGES = [
    _remove,
    _truncate_to_nothing,
    _truncate_half,
    _truncate_last_byte,
    _append,
    _flip_bit,
    _dangling_link,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_of_the_newest_falls_back(pristine, tmp_path, damage, caplog):
    files = _files(pristine / "00000002")
    assert {"meta.json", "manifest.json", "state/_METADATA"} <= set(files)
    for number, name in enumerate(files):
        directory = Path(shutil.copytree(pristine, tmp_path / str(number)))
        damage(directory / "00000002" / name)
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            state, meta = CheckpointStore(directory).restore(abstract(make_state(0)))
        assert_same(state, make_state(1))
        assert meta.step == 1
        assert sorted(os.listdir(directory)) == ["00000001", "00000002.damaged-1"]
        (record,) = caplog.records
        assert f"CHECKPOINT 2 IS DAMAGED: file {name}: " in record.getMessage()
        shutil.rmtree(directory)


def test_swapped_files_and_an_emptied_folder_are_damage(directory):
    data = sorted((directory / "00000002" / "state").rglob("d/*"), key=lambda p: p.stat().st_size)
    one, two = data[-1], data[-2]
    one_content, two_content = one.read_bytes(), two.read_bytes()
    one.write_bytes(two_content)
    two.write_bytes(one_content)
    state, _ = CheckpointStore(directory).restore(abstract(make_state(0)))
    assert_same(state, make_state(1))
    (directory / "00000003").mkdir()
    state, _ = CheckpointStore(directory).restore(abstract(make_state(0)))
    assert_same(state, make_state(1))
    assert "00000003.damaged-1" in os.listdir(directory)


def test_all_damaged_is_an_error_now_and_at_every_later_start(directory):
    for step in ("00000001", "00000002"):
        _flip_bit(directory / step / "meta.json")
    for _ in range(2):
        store = CheckpointStore(directory)
        with pytest.raises(UserError) as caught:
            store.restore(abstract(make_state(0)))
        assert "00000001.damaged-1, 00000002.damaged-1" in str(caught.value)
        assert "--workdir" in str(caught.value)
        for read in (store.read_meta, lambda s=store: s.restore_params({})):
            with pytest.raises(UserError, match="usable"):
                read()


def test_a_step_asked_for_by_number_never_falls_back(directory):
    store = CheckpointStore(directory)
    state, meta = store.restore(abstract(make_state(0)), step=1)
    assert meta.step == 1
    assert_same(state, make_state(1))
    _remove(directory / "00000002" / "state" / "_METADATA")
    with pytest.raises(UserError, match=r"00000002 is damaged: file state/_METADATA.*--resume"):
        store.restore(abstract(make_state(0)), step=2)
    with pytest.raises(UserError, match=r"no checkpoint of step 5.*\[2, 1\]"):
        store.restore(abstract(make_state(0)), step=5)
    assert store.steps() == [2, 1]


def test_readers_skip_damage_but_rename_nothing(directory):
    _truncate_half(directory / "00000002" / "manifest.json")
    before = sorted(os.listdir(directory))
    store = CheckpointStore(directory)
    assert store.read_meta().step == 1
    params, meta = store.restore_params(abstract(make_state(0)["params"]))
    assert meta.step == 1
    assert_same(params, make_state(1)["params"])
    assert sorted(os.listdir(directory)) == before


def test_damage_after_a_first_verification_is_found_by_the_same_store(directory):
    store = CheckpointStore(directory)
    assert store.read_meta().step == 2
    largest = max((directory / "00000002").rglob("d/*"), key=lambda path: path.stat().st_size)
    _flip_bit(largest)
    state, meta = store.restore(abstract(make_state(0)))
    assert meta.step == 1
    assert_same(state, make_state(1))


def test_a_quarantined_name_is_never_reused(directory):
    for number in (1, 2):
        _remove(directory / "00000002" / "meta.json")
        store = CheckpointStore(directory)
        _, meta = store.restore(abstract(make_state(0)))
        assert meta.step == 1
        assert f"00000002.damaged-{number}" in os.listdir(directory)
        store.save(2, make_state(2), make_meta(2))
        store.wait()
    assert CheckpointStore(directory).read_meta().step == 2
