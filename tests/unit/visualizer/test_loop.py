"""Saving, resuming and stopping around the updates."""

import dataclasses
import json
import os
import resource
import signal

import pytest

from metamorph_jax.errors import UserError
from metamorph_jax.metrics.phases import read_phases
from metamorph_jax.metrics.writers import read_metrics
from metamorph_jax.visualizer import loop
from metamorph_jax.visualizer.checkpoint import complete_steps
from metamorph_jax.visualizer.loop import EXIT_STOPPED, train
from metamorph_jax.visualizer.sources import Sources
from metamorph_jax.visualizer.trainer import Trainer
from tests.visualizer_files import RUN, write_data


@pytest.fixture
def files(tmp_path):
    return write_data(tmp_path)


def losses(out):
    return [(line["step"], line["loss"]) for line in read_metrics(out)]


def weights(out, step=6):
    return (out / "checkpoints" / f"{step:08d}" / "model.safetensors").read_bytes()


def test_every_step_is_written_and_the_newest_kept(files, tmp_path, capsys):
    assert train(RUN, files, tmp_path / "run") == 0
    assert [step for step, _ in losses(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert complete_steps(tmp_path / "run") == [6, 4]
    assert "visualizer step 6/6" in capsys.readouterr().err
    assert read_phases(tmp_path / "run")["visualizer"] > 0


def test_stopped_run_continues_to_the_same_end(files, tmp_path):
    train(RUN, files, tmp_path / "unbroken")
    assert train(RUN, files, tmp_path / "run", max_steps=3) == 0
    assert complete_steps(tmp_path / "run") == [3, 2]
    assert train(RUN, files, tmp_path / "run") == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "unbroken")
    assert weights(tmp_path / "run") == weights(tmp_path / "unbroken")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_leaves(files, tmp_path, monkeypatch, capsys, number):
    class Interrupted(Trainer):
        def update(self, batch):
            values = super().update(batch)
            if self.step == 3:
                os.kill(os.getpid(), number)
            return values

    monkeypatch.setattr(loop, "Trainer", Interrupted)
    before = signal.getsignal(number)
    assert train(RUN, files, tmp_path / "run") == EXIT_STOPPED
    assert complete_steps(tmp_path / "run") == [3, 2]
    assert f"{number.name}: saved at step 3" in capsys.readouterr().out
    assert signal.getsignal(number) is before


def test_damaged_newest_checkpoint_costs_one_interval(files, tmp_path):
    train(RUN, files, tmp_path / "run")
    expected = losses(tmp_path / "run"), weights(tmp_path / "run")
    (tmp_path / "run/checkpoints/00000006/training_state.safetensors").unlink()
    train(RUN, files, tmp_path / "run")
    assert (losses(tmp_path / "run"), weights(tmp_path / "run")) == expected


def test_never_starts_over_and_keeps_the_old(files, tmp_path, capsys):
    train(RUN, files, tmp_path / "run")
    train(dataclasses.replace(RUN, seed=1), files, tmp_path / "run", resume="never", max_steps=2)
    assert complete_steps(tmp_path / "run") == [2]
    assert [step for step, _ in losses(tmp_path / "run")] == [1, 2]
    assert complete_steps(tmp_path / "run/checkpoints.superseded-1") == []
    old = tmp_path / "run/checkpoints.superseded-1/00000006/config.json"
    assert json.loads(old.read_text())["num_tokens"] == 4
    assert "starting over" in capsys.readouterr().out


def test_finished_run_has_nothing_to_do(files, tmp_path):
    train(RUN, files, tmp_path / "run")
    before = losses(tmp_path / "run"), weights(tmp_path / "run")
    phases = read_phases(tmp_path / "run")
    assert train(RUN, files, tmp_path / "run") == 0
    assert (losses(tmp_path / "run"), weights(tmp_path / "run")) == before
    assert read_phases(tmp_path / "run") == phases


def test_diverging_run_stops_with_its_metrics_written(files, tmp_path):
    training = dataclasses.replace(
        RUN.training, learning_rate=1e30, warmup_steps=0, max_grad_norm=None
    )
    with pytest.raises(UserError, match="step 2: loss"):
        train(dataclasses.replace(RUN, training=training), files, tmp_path / "run")
    assert [step for step, _ in losses(tmp_path / "run")] == [1]


def test_full_disk_costs_one_interval(files, tmp_path):
    train(RUN, files, tmp_path / "unbroken")
    run = tmp_path / "run"
    train(RUN, files, run, max_steps=2)
    whole = (run / "checkpoints/00000002/model.safetensors").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole // 2, before[1]))  # no file may be as long
    try:
        with pytest.raises(UserError, match="the checkpoint of step 4 could not be written"):
            train(RUN, files, run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert complete_steps(run) == [2]
    train(RUN, files, run)
    assert (losses(run), weights(run)) == (
        losses(tmp_path / "unbroken"),
        weights(tmp_path / "unbroken"),
    )


def test_processes_that_accelerate_does_not_see_are_told(files, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"2 processes were started .* ACCELERATE_USE_CPU"):
        train(RUN, files, tmp_path / "run")


def test_nothing_is_written_when_the_files_are_bad(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        train(RUN, Sources(tmp_path, (tmp_path / "none",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
