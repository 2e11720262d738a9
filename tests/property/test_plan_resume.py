"""R17: ids before and after a resume are the unbroken sequence, for any mixture and cut."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from metamorph_jax.data.example_table import ExampleTable
from metamorph_jax.data.loader import step_rows as rows_of
from metamorph_jax.data.packing import num_shown
from metamorph_jax.data.plan import RowShape, Section, StagePlan, continue_sections

STEPS = 10

lengths = st.lists(st.integers(0, 12), min_size=1, max_size=12)  # 0: a bad record
runs = st.fixed_dictionaries(
    {
        "sources": st.lists(st.tuples(lengths, st.floats(0.6, 2.5)), min_size=1, max_size=3),
        "batch": st.sampled_from([4, 8, 12]),
        "packing": st.booleans(),
        "seed": st.integers(0, 99),
    }
).filter(
    lambda run: all(num_shown(sum(map(bool, sizes)), weight) for sizes, weight in run["sources"])
)


def make(run, sections=None):
    """Returns a plan and nothing that an earlier process computed."""
    rows = np.zeros(
        sum(len(sizes) for sizes, _ in run["sources"]), [("length", "<i4"), ("num_images", "<i4")]
    )
    rows["length"] = [length for sizes, _ in run["sources"] for length in sizes]
    rows["num_images"] = rows["length"] % 3
    sections = sections or [Section(0, tuple(weight for _, weight in run["sources"]))]
    return StagePlan(
        ExampleTable(rows, ()),
        [len(sizes) for sizes, _ in run["sources"]],
        sections,
        RowShape(max_seq_len=16, max_images=4, packing=run["packing"]),
        f"{run['seed']}/vpit",
        run["batch"],
        "data",
    )


def share(process, processes, batch):
    """Returns the places of a process in the batch."""
    size = batch // processes
    return range(process * size, (process + 1) * size)


def step_rows(plan, run, step, processes):
    """Returns the rows of a step, built process by process."""
    return [
        plan.row(row)
        for process in range(processes)
        for row in rows_of(step, run["batch"], share(process, processes, run["batch"]))
    ]


@settings(deadline=None, max_examples=500)
@given(
    run=runs,
    cut=st.integers(0, STEPS),
    before=st.sampled_from([1, 2, 4]),
    after=st.sampled_from([1, 2, 4]),
)
def test_before_and_after_are_the_unbroken_sequence(run, cut, before, after):
    unbroken = [step_rows(make(run), run, step, 1) for step in range(STEPS)]
    first, resumed = make(run), make(run)
    pieces = [step_rows(first, run, step, before) for step in range(cut)]
    pieces += [step_rows(resumed, run, step, after) for step in range(cut, STEPS)]
    assert pieces == unbroken


@settings(deadline=None, max_examples=200)
@given(run=runs)
def test_an_epoch_loses_and_repeats_nothing(run):
    plan = make(run)
    shown = np.bincount(plan.epoch(0).examples, minlength=1)
    first = 0
    for sizes, weight in run["sources"]:
        usable = [first + index for index, length in enumerate(sizes) if length]
        counts = [int(shown[index]) if index < len(shown) else 0 for index in usable]
        assert sum(counts) == num_shown(len(usable), weight)
        assert all(int(weight) <= count <= int(weight) + 1 for count in counts)
        first += len(sizes)
    assert len(plan.epoch(0).examples) == shown.sum()


@settings(deadline=None, max_examples=200)
@given(
    run=runs, change=st.integers(1, STEPS), weight=st.floats(0.6, 2.5), cut=st.integers(1, STEPS)
)
def test_a_new_mixture_begins_at_its_step_and_survives_resumes(run, change, weight, cut):
    old = make(run)
    weights = [weight for _ in run["sources"]]
    sections = continue_sections(old.sections, change, weights)
    changed = make(run, sections)
    assert [changed.row(row) for row in range(change * run["batch"])] == [
        old.row(row) for row in range(change * run["batch"])
    ]
    # Resumed later with the same weights: the same sections, so the same rows.
    if cut > change:
        resumed = make(run, continue_sections(sections, cut, weights))
        begin = cut * run["batch"]
        assert [resumed.row(begin + row) for row in range(8)] == [
            changed.row(begin + row) for row in range(8)
        ]
