import json

import numpy as np
import pytest

from metamorph_jax.data import packing
from metamorph_jax.data.example_table import ExampleTable
from metamorph_jax.data.plan import RowShape, Section, StagePlan, continue_sections

SIZES = (20, 10)


def table(bad=()):
    dtype = [("length", "<i4"), ("num_images", "<i4")]
    rows = np.zeros(sum(SIZES), dtype)
    rows["length"] = np.arange(sum(SIZES)) % 7 + 3
    rows["length"][list(bad)] = 0
    return ExampleTable(rows, ())


ONE = (Section(0, (1.0, 1.0)),)


def make(sections=ONE, bad=(), folder=None, batch=2, fingerprint="data"):
    shape = RowShape(max_seq_len=16, max_images=4, packing=True)
    return StagePlan(table(bad), SIZES, sections, shape, "0/vpit", batch, fingerprint, folder)


def rows(plan, count):
    return [plan.row(row) for row in range(count)]


def test_bad_examples_are_in_no_row():
    bad = (0, 7, 25)
    plan = make(bad=bad)
    assert plan.usable_sizes == (18, 9)
    shown = sorted(plan.epoch(0).examples.tolist())
    assert shown == [index for index in range(30) if index not in bad]


def test_a_section_begins_where_it_says_and_changes_nothing_before():
    first, later = Section(0, (1.0, 1.0)), Section(5, (1.0, 3.0))
    before, after = make((first,)), make((first, later))
    assert rows(after, 10) == rows(before, 10)
    counts = np.bincount(np.concatenate([after.row(10 + row) for row in range(40)]), minlength=30)
    assert counts[20:].mean() > 2 * counts[:20].mean()


def test_sections_follow_the_weights():
    first = continue_sections((), 0, [1.0, 2.0])
    assert first == (Section(0, (1.0, 2.0)),)
    assert continue_sections(first, 7, [1.0, 2.0]) == first
    second = continue_sections(first, 7, [1.0, 5.0])
    assert second == (*first, Section(7, (1.0, 5.0)))
    # Resumed from before the change, which then never happened.
    assert continue_sections(second, 7, [1.0, 2.0]) == first
    assert continue_sections(second, 3, [2.0, 2.0]) == (*first, Section(3, (2.0, 2.0)))


def test_the_plan_is_kept_as_files_and_read_again(tmp_path):
    sections = (Section(0, (1.0, 1.0)), Section(4, (0.5, 2.0)))
    plan = make(sections, folder=tmp_path)
    plan.prepare(num_steps=12)
    fields = json.loads((tmp_path / "plan.json").read_text())
    assert [section["first_step"] for section in fields["sections"]] == [0, 4]
    assert fields["key"] == "0/vpit" and fields["fingerprint"] == "data"
    for epoch in fields["epochs"]:
        arrays = [np.load(tmp_path / name) for name in epoch["files"]]
        assert len(arrays[1]) - 1 == epoch["rows"] and len(arrays[0]) == arrays[1][-1]
    planned = sum(epoch["rows"] for epoch in fields["epochs"] if epoch["section"] == 1)
    assert planned >= (12 - 4) * 2
    again = make(sections, folder=tmp_path)
    again._pack = None  # everything is read
    assert rows(again, 24) == rows(make(sections), 24)


def test_planning_tells_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_CHUNK", 8)
    sections, told = (Section(0, (1.0, 1.0)), Section(9, (1.0, 3.0))), []
    plan = make(sections, folder=tmp_path)
    plan.prepare(40, lambda done, total: told.append((done, total)))
    done, totals = zip(*told, strict=True)
    epochs = json.loads((tmp_path / "plan.json").read_text())["epochs"]
    assert len(epochs) > 3 and list(done) == sorted(done) and len(set(done)) > 2 * len(epochs)
    sizes = {0: 30, 1: 50}  # examples of an epoch of each section
    assert done[-1] == totals[-1] == sum(sizes[epoch["section"]] for epoch in epochs)
    assert all(count <= total for count, total in told)
    later = [total for count, total in told if count >= done[-1] / 2]
    assert max(later) <= 1.2 * totals[-1]  # an estimate, and not a bad one


def test_planning_can_be_stopped_and_keeps_finished_epochs(tmp_path):
    def stop(done, total):
        if done >= 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(folder=tmp_path).prepare(40, stop)
    assert len(list(tmp_path.glob("rows-*"))) == 2 and not (tmp_path / "plan.json").exists()
    make(folder=tmp_path).prepare(40)
    assert rows(make(folder=tmp_path), 80) == rows(make(), 80)


def test_files_of_another_plan_are_not_read(tmp_path):
    make(folder=tmp_path).prepare(num_steps=4)
    other = make(folder=tmp_path, bad=(1, 2, 3), fingerprint="other data")
    assert rows(other, 8) == rows(make(bad=(1, 2, 3)), 8)
    other.prepare(num_steps=4)
    fields = json.loads((tmp_path / "plan.json").read_text())
    needed = {name for epoch in fields["epochs"] for name in epoch["files"]}
    assert {file.name for file in tmp_path.glob("rows-*")} == needed


def test_a_damaged_file_is_planned_again(tmp_path):
    make(folder=tmp_path).prepare(num_steps=4)
    for file in tmp_path.glob("rows-*.npy"):
        file.write_bytes(file.read_bytes()[:100])
    assert rows(make(folder=tmp_path), 8) == rows(make(), 8)
