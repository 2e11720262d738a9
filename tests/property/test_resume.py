"""The samples of a run are a pure function of (seed, step): cutting it anywhere is invisible."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metamorph_jax.config.schema_run import DataConfig, SourceConfig
from metamorph_jax.data.captions import CaptionData
from metamorph_jax.data.pipeline import TrainingData
from metamorph_jax.data.templates import TEMPLATES
from tests.data_files import small_tokenizer, write_dataset, write_images, write_jsonl

some = settings(deadline=None, max_examples=40)
STEPS = 12


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Returns a tokenizer, two sources of conversations and one of captions."""
    folder = tmp_path_factory.mktemp("world")
    sources = [write_dataset(folder / name, size, size) for name, size in (("a", 11), ("b", 6))]
    names = write_images(folder / "captions", 7)
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a cat"}]
    records = [{"image": name, "conversations": turns} for name in names]
    captions = write_jsonl(folder / "captions" / "captions.jsonl", records)
    return small_tokenizer(folder / "tokenizer"), sources, captions


settings_of_a_run = st.fixed_dictionaries(
    {
        "weights": st.tuples(st.floats(0.3, 2.5), st.floats(0.3, 2.5)),
        "batch": st.sampled_from([4, 8, 12]),
        "seed": st.integers(0, 3),
        "packing": st.booleans(),
    }
)


def make(world, run, prefetch=2):
    tokenizer, sources, _ = world
    weighted = zip(sources, run["weights"], strict=True)
    data = DataConfig(
        sources=tuple(SourceConfig(path=str(path), weight=weight) for path, weight in weighted),
        max_seq_len=80,
        max_images=4,
        packing=run["packing"],
        prefetch_batches=prefetch,
    )
    return TrainingData(
        data,
        tokenizer,
        TEMPLATES["metamorph_llama3"],
        image_size=4,
        num_visual_tokens=2,
        seed=run["seed"],
        stage_name="vpit",
        global_batch_size=run["batch"],
    )


@some
@given(run=settings_of_a_run, cut=st.integers(0, STEPS - 1), prefetch=st.integers(0, 3))
def test_cut_and_resumed_equals_unbroken(world, run, cut, prefetch):
    unbroken = [make(world, run).batch(step) for step in range(STEPS)]
    before, after = make(world, run, prefetch).batches(), make(world, run, prefetch).batches(cut)
    pieces = [*itertools.islice(before, cut), *itertools.islice(after, STEPS - cut)]
    before.close()
    after.close()
    for found, expected in zip(pieces, unbroken, strict=True):
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)


@some
@given(run=settings_of_a_run, step=st.integers(0, STEPS), processes=st.sampled_from([1, 2, 4]))
def test_processes_see_the_same_global_batch(world, run, step, processes):
    data = make(world, run)
    size = data.global_batch_size // processes
    places = [range(index * size, (index + 1) * size) for index in range(processes)]
    shares = [make(world, run).batch(step, share) for share in places]
    for name, array in data.batch(step).items():
        np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), array)


@some
@given(run=settings_of_a_run)
def test_epochs_lose_and_repeat_nothing(world, run):
    """Rows of whole epochs, read step by step, show each example as often as its weight says."""
    data = make(world, run)
    first, second = len(data.plan.epoch(0)), len(data.plan.epoch(1))
    num_rows = first + second
    ids, step = [], 0
    while step * run["batch"] < num_rows:
        ids += data.sample_ids(step)
        step += 1
    total = [len(data.plan.epoch(epoch).examples) for epoch in (0, 1)]
    for epoch, begin in ((0, 0), (1, total[0])):
        seen = ids[begin : begin + total[epoch]]
        assert sorted(seen) == sorted(
            data.example(index).where for index in data.plan.epoch(epoch).examples.tolist()
        )


@some
@given(seed=st.integers(0, 3), cut=st.integers(0, 9), batch=st.sampled_from([2, 4, 10]))
def test_captions_resume_too(world, seed, cut, batch):
    tokenizer, _, path = world

    def captions():
        data = DataConfig(sources=(SourceConfig(path=str(path)),), max_seq_len=8)
        return CaptionData(
            data,
            tokenizer,
            image_size=4,
            seed=seed,
            stage_name="encoder",
            global_batch_size=batch,
            shift_pixels=1,
        )

    resumed = captions().batches(cut)
    for step, found in zip(range(cut, cut + 3), resumed, strict=False):
        for name, array in captions().batch(step).items():
            np.testing.assert_array_equal(found[name], array)
    resumed.close()


def test_workers_change_no_id(world):
    """The same batches with 0, 1 and 4 worker processes."""
    run = {"weights": (1.0, 1.5), "batch": 4, "seed": 0, "packing": True}
    expected = [make(world, run).batch(step) for step in range(3, 7)]
    for num_workers in (0, 1, 4):
        data = make(world, run)
        data.data = dataclasses.replace(data.data, num_workers=num_workers)
        batches = data.batches(3)
        for found, batch in zip(batches, expected, strict=False):
            for name, array in batch.items():
                np.testing.assert_array_equal(found[name], array)
        batches.close()
