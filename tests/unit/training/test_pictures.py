"""When the painting process is started, and that nothing it does reaches the run."""

import logging
import os
import time

import pytest

from metamorph_jax.config.build import build_dataclass
from metamorph_jax.config.schema_run import PicturesConfig
from metamorph_jax.errors import UserError
from metamorph_jax.signals import StopRequest
from metamorph_jax.training.pictures import LOG_FILE, PicturePainter, check_pictures


@pytest.fixture
def config(tmp_path):
    """Returns a section whose process fails: the visualizer's folder is empty."""
    (tmp_path / "records.jsonl").write_text("")
    (tmp_path / "visualizer").mkdir()
    return PicturesConfig(
        interval_steps=10,
        records=str(tmp_path / "records.jsonl"),
        image_root=str(tmp_path),
        visualizer=str(tmp_path / "visualizer"),
    )


def write_checkpoint(workdir, step):
    folder = workdir / "checkpoints" / f"{step:08d}"
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text("{}")
    return folder


def test_nothing_is_done_without_the_section(tmp_path):
    painter = PicturePainter(None, tmp_path, 0)
    painter.saved(1000)
    painter.poll()
    assert painter._process is None
    check_pictures(None)


@pytest.mark.parametrize(
    ("first", "saved", "due"),
    [
        (0, [5, 9], None),
        (0, [5, 10], 10),
        (0, [5, 12], 12),
        (0, [10, 15], 10),
        (0, [10, 15, 35], 35),
        (20, [25], None),
        (20, [25, 30], 30),
    ],
)
def test_one_is_due_at_the_first_checkpoint_of_each_interval(config, tmp_path, first, saved, due):
    painter = PicturePainter(config, tmp_path, first)
    for step in saved:
        painter.saved(step)
    assert painter._due == due


def test_it_waits_for_the_checkpoint_and_a_failure_is_a_warning(config, tmp_path, caplog):
    with PicturePainter(config, tmp_path, 0) as painter:
        painter.saved(10)
        painter.poll()
        assert painter._process is None  # still being written
        checkpoint = write_checkpoint(tmp_path, 10)
        painter.poll()
        process = painter._process
        deadline = time.monotonic() + 10  # `nice` has to start first
        while os.getpriority(os.PRIO_PROCESS, process.pid) != 19:
            assert time.monotonic() < deadline
        held = tmp_path / "pictures/.checkpoint/00000010"
        assert (held / "meta.json").samefile(checkpoint / "meta.json")
        write_checkpoint(tmp_path, 20)
        painter.saved(20)
        painter.poll()
        assert painter._process is process  # one at a time
        process.wait(timeout=120)
        with caplog.at_level(logging.WARNING), StopRequest() as stop:
            painter.finish(stop)
    assert "exit code 2" in caplog.text and str(tmp_path / LOG_FILE) in caplog.text
    log = (tmp_path / LOG_FILE).read_text()
    assert log.count("no visualizer here") == 2  # that of step 20 was started after all
    assert not held.parent.exists()


def test_nothing_outlives_the_run(config, tmp_path):
    write_checkpoint(tmp_path, 10)
    with pytest.raises(RuntimeError), PicturePainter(config, tmp_path, 0) as painter:
        painter.saved(10)
        painter.poll()
        process = painter._process
        raise RuntimeError("the run fails")
    assert process.poll() is not None
    assert not (tmp_path / "pictures/.checkpoint").exists()


def test_a_stop_is_not_kept_waiting(config, tmp_path):
    write_checkpoint(tmp_path, 10)
    with PicturePainter(config, tmp_path, 0) as painter, StopRequest() as stop:
        painter.saved(10)
        stop.signal_name = "SIGTERM"
        start = time.monotonic()
        painter.finish(stop)
        assert time.monotonic() - start < 2


@pytest.mark.parametrize("key", ["records", "image_root", "visualizer"])
def test_what_is_missing_is_told_before_training(config, key, tmp_path):
    values = {name: getattr(config, name) for name in ("records", "image_root", "visualizer")}
    values[key] = str(tmp_path / "nowhere")
    changed = PicturesConfig(interval_steps=10, **values)
    with pytest.raises(UserError, match=rf"config\.pictures\.{key}: .*nowhere is no"):
        check_pictures(changed)


def test_intervals_are_positive():
    values = {"interval_steps": 0, "records": "a", "image_root": "b", "visualizer": "c"}
    with pytest.raises(UserError, match="interval_steps=0"):
        build_dataclass(PicturesConfig, values)


def test_pictures_that_take_too_long_leave_the_command(config, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("metamorph_jax.training.pictures._LAST_WAIT_SECS", 0.0)
    checkpoint = write_checkpoint(tmp_path, 10)
    with PicturePainter(config, tmp_path, 0) as painter, StopRequest() as stop:
        painter.saved(10)
        painter.finish(stop)
    assert "took too long" in caplog.text
    assert f"-m metamorph_jax.visualizer.reconstruct --checkpoint={checkpoint} " in caplog.text
