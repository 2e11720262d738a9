"""Folders that appear whole, damage that is found, and weights that must fit."""

import dataclasses
import errno
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from metamorph_jax.config.loading import to_dict
from metamorph_jax.errors import UserError
from metamorph_jax.visualizer import checkpoint as checkpoints
from metamorph_jax.visualizer.checkpoint import (
    TrainingState,
    complete_steps,
    load_training_state,
    load_visualizer,
    newest_intact,
    remove_leftovers,
    save_checkpoint,
    set_aside_checkpoints,
)
from metamorph_jax.visualizer.model import Visualizer
from tests.visualizer_files import MODEL, RUN

FILES = ["config.json", "model.safetensors", "training_state.safetensors", "manifest.json"]


def save(run, step, keep=2):
    """Saves a model whose weights tell its step."""
    torch.manual_seed(step)
    model = Visualizer(MODEL)
    state = TrainingState(step, {"exp_avg/x": torch.ones(2)}, to_dict(RUN), "f00d")
    return model, save_checkpoint(run, model, state, keep)


def equal(left, right):
    pairs = zip(left.state_dict().items(), right.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_round_trip_of_run_checkpoint_and_plain_folder(tmp_path):
    model, folder = save(tmp_path, 3)
    assert folder.name == "00000003"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in FILES[:2]:
        (plain / name).write_bytes((folder / name).read_bytes())
    for place in (tmp_path, folder, plain):
        loaded = load_visualizer(place)
        assert equal(loaded, model)
        assert loaded.config == MODEL
        assert not loaded.training


def test_training_state_round_trip(tmp_path):
    _, folder = save(tmp_path, 3)
    state = load_training_state(folder)
    assert (state.step, state.data_fingerprint) == (3, "f00d")
    assert state.tensors["exp_avg/x"].tolist() == [1, 1]
    assert state.recipe["training"]["learning_rate"] == RUN.training.learning_rate


def test_newest_are_kept(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert complete_steps(tmp_path) == [3, 2]


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 3)
    other = Visualizer(MODEL)
    save_checkpoint(tmp_path, other, TrainingState(3, {}, {}, ""), keep=2)
    assert equal(load_visualizer(tmp_path), other)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["remove", "truncate", "flip"])
def test_damage_is_found_and_the_one_before_used(tmp_path, name, damage, caplog):
    _, older = save(tmp_path, 1)
    _, newer = save(tmp_path, 2)
    file = newer / name
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "truncate":
        file.write_bytes(content[:-3])
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert newest_intact(tmp_path) == older
    assert f"{newer} is damaged" in caplog.text
    if name != "manifest.json":  # a wrong hash in there puts the blame on another file
        assert name in caplog.text


def test_nothing_intact_is_an_error_and_nothing_at_all_is_not(tmp_path):
    assert newest_intact(tmp_path) is None
    _, folder = save(tmp_path, 1)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"all checkpoints are damaged.*\n.*model\.safetensors"):
        newest_intact(tmp_path)


def test_damaged_checkpoint_is_not_painted_with(tmp_path):
    _, folder = save(tmp_path, 1)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is not what was written"):
        load_visualizer(folder)


def test_full_disk_leaves_older_checkpoints_alone(tmp_path, monkeypatch):
    model, _ = save(tmp_path, 1)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(UserError, match=r"step 2 could not be written.*No space left"):
        save(tmp_path, 2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000001"]
    assert equal(load_visualizer(tmp_path), model)


def test_leftovers_of_killed_processes_are_removed_and_never_read(tmp_path):
    save(tmp_path, 1)
    unfinished = tmp_path / "checkpoints" / "00000002.tmp-123"
    unfinished.mkdir()
    assert complete_steps(tmp_path) == [1]
    remove_leftovers(tmp_path)
    assert not unfinished.exists()
    assert complete_steps(tmp_path) == [1]


def test_set_aside_keeps_everything(tmp_path):
    assert set_aside_checkpoints(tmp_path) is None
    for number in (1, 2):
        save(tmp_path, number)
        aside = set_aside_checkpoints(tmp_path)
        assert aside.name == f"checkpoints.superseded-{number}"
        assert complete_steps(tmp_path) == []
        assert (aside / f"{number:08d}" / "model.safetensors").exists()


def plain_folder(tmp_path, config, weights):
    (tmp_path / "config.json").write_text(config)
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.pop("positions"), "1 missing ['positions']"),
        (lambda w: w.update(extra=torch.ones(1)), "1 unknown ['extra']"),
        (lambda w: w.update(positions=torch.ones(3, 8)), "positions is [3, 8], expected [4, 8]"),
    ],
)
def test_weights_must_fit_the_config(tmp_path, change, told):
    weights = dict(Visualizer(MODEL).state_dict())
    change(weights)
    plain_folder(tmp_path, json.dumps(to_dict(MODEL)), weights)
    with pytest.raises(UserError) as error:
        load_visualizer(tmp_path)
    assert told in str(error.value)


def test_other_mistakes_in_a_folder_are_told(tmp_path):
    with pytest.raises(UserError, match="no visualizer here"):
        load_visualizer(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json:1: not JSON"):
        load_visualizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(MODEL)))
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        load_visualizer(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04K\x01.")  # a pickle
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
        load_visualizer(tmp_path)


def test_weights_are_plain_tensors_under_the_projectors_own_names(tmp_path):
    _, folder = save(tmp_path, 1)
    names = load_file(folder / "model.safetensors").keys()
    assert {"projector.layers.0.weight", "projector.norms.1.bias", "unet.conv_in.weight"} <= names


def test_attention_projectors_are_stored_too(tmp_path):
    projector = dataclasses.replace(MODEL.projector, mode="xattnffn", num_heads=2, num_queries=3)
    model = Visualizer(dataclasses.replace(MODEL, projector=projector))
    save_checkpoint(tmp_path, model, TrainingState(1, {}, {}, ""), keep=2)
    assert equal(load_visualizer(tmp_path), model)
