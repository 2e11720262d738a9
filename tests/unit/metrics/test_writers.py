"""metrics.jsonl: exact, truncatable, and safe against a kill at any byte."""

import json
import math

import numpy as np
import pytest

from metamorph_jax.metrics.writers import METRICS_FILE, MetricWriter, read_metrics


def write_steps(workdir, steps):
    writer = MetricWriter(workdir)
    for step in steps:
        writer.write_scalars(step, {"loss": 1 / step})
    writer.close()


def steps_in(workdir):
    return [line["step"] for line in read_metrics(workdir)]


def test_floats_come_back_bit_for_bit(tmp_path):
    values = {
        "third": 1 / 3,
        "tiny": 5e-324,
        "single": np.float32(0.1),
        "count": np.int64(2**40),
        "stage": "vpit",
        "skipped": 0,
    }
    writer = MetricWriter(tmp_path)
    writer.write_scalars(7, values)
    writer.close()
    (line,) = read_metrics(tmp_path)
    assert line == {"step": 7} | {
        k: v.item() if hasattr(v, "item") else v for k, v in values.items()
    }
    assert line["single"] == float(np.float32(0.1)) != 0.1
    assert isinstance(line["skipped"], int)


def test_what_is_no_number_stays_valid_json(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write_scalars(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    writer.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    text = (tmp_path / METRICS_FILE).read_text()
    assert json.loads(text, parse_constant=refuse) == {
        "step": 1,
        "a": "nan",
        "b": "inf",
        "c": "-inf",
    }
    (line,) = read_metrics(tmp_path)
    assert math.isnan(line["a"])
    assert (line["b"], line["c"]) == (math.inf, -math.inf)


def test_lines_are_there_before_close(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write_scalars(1, {"loss": 0.5})
    assert steps_in(tmp_path) == [1]
    writer.close()


def test_truncate_after_drops_later_steps_and_goes_on(tmp_path):
    write_steps(tmp_path, range(1, 6))
    writer = MetricWriter(tmp_path)
    writer.truncate_after(3)
    assert steps_in(tmp_path) == [1, 2, 3]
    writer.write_scalars(4, {"loss": 9.0})
    writer.close()
    assert steps_in(tmp_path) == [1, 2, 3, 4]
    assert read_metrics(tmp_path)[-1]["loss"] == 9.0
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_half_written_last_line_is_forgotten(tmp_path, cut):
    write_steps(tmp_path, [1, 2])
    path = tmp_path / METRICS_FILE
    path.write_bytes(path.read_bytes()[:-cut])
    assert steps_in(tmp_path) == ([1, 2] if cut == 1 else [1])  # cut 1 lost the newline alone
    write_steps(tmp_path, [3])
    assert steps_in(tmp_path) == [1, 3]


def test_truncating_an_empty_run_is_fine(tmp_path):
    writer = MetricWriter(tmp_path / "new" / "run")
    writer.truncate_after(0)
    writer.write_scalars(1, {"loss": 1.0})
    writer.close()
    assert steps_in(tmp_path / "new" / "run") == [1]
