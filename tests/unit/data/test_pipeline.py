import dataclasses
import itertools
import shutil

import numpy as np
import pytest

from metamorph_jax.config.schema_run import DataConfig, SourceConfig
from metamorph_jax.data.examples import Examples
from metamorph_jax.data.pipeline import TrainingData
from metamorph_jax.data.templates import TEMPLATES
from metamorph_jax.errors import UserError
from tests.data_files import small_tokenizer, write_dataset, write_jsonl

P, SIZE, BATCH = 2, 4, 4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), 30)


def make(
    dataset, tokenizer, *, seed=0, stage_name="vpit", batch=BATCH, weight=1.0, folder=None, **fields
):
    sources = (SourceConfig(path=str(dataset), weight=weight),)
    data = DataConfig(**{"sources": sources, "max_seq_len": 96, "max_images": 5} | fields)
    return TrainingData(
        data,
        tokenizer,
        TEMPLATES["metamorph_llama3"],
        image_size=SIZE,
        num_visual_tokens=P,
        seed=seed,
        stage_name=stage_name,
        global_batch_size=batch,
        folder=folder,
    )


@pytest.fixture(scope="module")
def training_data(dataset, tokenizer):
    return make(dataset, tokenizer)


def equal(first, second):
    return first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name]) for name in first
    )


def test_shapes_and_types(training_data):
    batch = training_data.batch(0)
    for name in ("tokens", "targets", "segment_ids", "positions", "visual_index", "visual_target"):
        assert batch[name].shape == (BATCH, 96) and batch[name].dtype == np.int32
    assert batch["loss_mask"].shape == (BATCH, 96) and batch["loss_mask"].dtype == np.bool_
    assert batch["images"].shape == (BATCH, 5, SIZE, SIZE, 3)
    assert batch["images"].dtype == np.uint8


def test_images_are_those_of_the_records(training_data, dataset):
    """Each image's colour tells its file, each row's sample ids tell its records."""
    batch, ids = training_data.batch(1), iter(training_data.sample_ids(1))
    by_where = {example.where: example for example in map(training_data.example, range(30))}
    for row in range(BATCH):
        examples = [by_where[next(ids)] for _ in range(batch["segment_ids"][row].max())]
        paths = [path for example in examples for path in example.images]
        colours = batch["images"][row, :, 0, 0, 0].tolist()
        expected = [int(path.split("/")[1].split(".")[0]) + 1 for path in paths]
        assert colours == expected + [0] * (5 - len(expected))


def test_an_epoch_shows_everything_once(training_data):
    plan = training_data.plan.epoch(0)
    assert sorted(plan.examples.tolist()) == list(range(30))
    assert training_data.plan.epoch(1).fingerprint != plan.fingerprint


def test_epochs_are_laid_end_to_end(dataset, tokenizer):
    data = make(dataset, tokenizer, batch=1)
    first, second = len(data.plan.epoch(0)), len(data.plan.epoch(1))

    def ids(epoch, row):
        return [data.example(index).where for index in data.plan.epoch(epoch)[row].tolist()]

    assert data.sample_ids(first - 1) == ids(0, first - 1)
    assert data.sample_ids(first) == ids(1, 0)
    assert data.sample_ids(first + second) == ids(2, 0)


def test_batches_are_a_function_of_seed_and_step(dataset, tokenizer, training_data):
    batches = training_data.batches(3)
    for step, batch in zip(range(3, 8), batches, strict=False):
        assert equal(batch, make(dataset, tokenizer).batch(step))
    batches.close()
    for other in (make(dataset, tokenizer, seed=1), make(dataset, tokenizer, stage_name="adapter")):
        assert not equal(other.batch(3), training_data.batch(3))


def test_processes_share_the_global_batch(training_data):
    whole = training_data.batch(2)
    size = len(whole["tokens"]) // 2
    shares = (range(size), range(size, 2 * size))
    halves = [training_data.batch(2, places) for places in shares]
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), array)


def test_worker_processes_change_nothing(dataset, tokenizer, training_data):
    batches = make(dataset, tokenizer, num_workers=2).batches(4)
    for step, batch in zip(range(4, 9), itertools.islice(batches, 5), strict=True):
        assert equal(batch, training_data.batch(step))
    batches.close()


def test_without_packing_every_example_has_its_row(dataset, tokenizer):
    data = make(dataset, tokenizer, packing=False)
    assert data.describe()["rows_per_epoch"] == 30
    assert data.batch(0)["segment_ids"].max() == 1


def test_describe_counts(dataset, tokenizer):
    data = make(dataset, tokenizer, weight=2.0)
    facts = data.describe()
    examples = [data.example(index) for index in range(30)]
    tokens = sum(map(len, examples))
    assert facts["examples"] == 30 and facts["examples_per_epoch"] == 60
    assert facts["tokens_per_epoch"] == 2 * tokens
    assert facts["images"] == sum(len(example.images) for example in examples)
    assert facts["images_per_epoch"] == 2 * facts["images"]
    assert facts["answer_images"] == sum(sum(example.image_is_answer) for example in examples)
    assert facts["supervised_tokens"] == sum(int(e.supervised.sum()) for e in examples)
    fill = 2 * tokens / (facts["rows_per_epoch"] * 96)
    assert facts["fill_fraction"] == round(fill, 4)
    assert facts["cut_examples"] == 0


def test_overlong_examples_are_cut_and_counted(dataset, tokenizer):
    data = make(dataset, tokenizer, max_images=2)
    assert data.describe()["cut_examples"] == sum(index % 4 == 2 for index in range(30))
    assert data.batch(0)["images"].shape[1] == 2


def test_fingerprint_follows_what_a_step_sees(dataset, tokenizer, training_data, tmp_path):
    same = make(dataset, tokenizer, num_workers=1, prefetch_batches=0)
    assert same.fingerprint == training_data.fingerprint
    moved = shutil.copytree(dataset.parent, tmp_path / "moved") / dataset.name
    assert make(moved, tokenizer).fingerprint == training_data.fingerprint
    others = [
        make(dataset, tokenizer, seed=1),
        make(dataset, tokenizer, batch=2),
        make(dataset, tokenizer, max_seq_len=97),
        make(dataset, tokenizer, packing=False),
        make(dataset, tokenizer, image_geometry="pad"),
        make(write_dataset(tmp_path / "other", 30, seed=1), tokenizer),
    ]
    prints = {other.fingerprint for other in others} | {training_data.fingerprint}
    assert len(prints) == len(others) + 1


def test_broken_images_leave_empty_places_and_are_listed(tokenizer, tmp_path):
    whole = write_dataset(tmp_path / "whole", 8)
    broken = write_dataset(tmp_path / "broken", 8)
    (tmp_path / "broken" / "images" / "0.png").write_bytes(b"not an image")
    bad = {
        f"{broken}:{line}"
        for line, text in enumerate(broken.read_text().splitlines(), start=1)
        if "images/0.png" in text
    }
    assert 0 < len(bad) < 8
    expected = make(whole, tokenizer)
    for num_workers in (0, 1):
        data = make(broken, tokenizer, num_workers=num_workers, max_bad_fraction=1.0)
        batches = data.batches()
        for step, batch in zip(range(3), itertools.islice(batches, 3), strict=True):
            other = expected.batch(step)
            ids = iter(data.sample_ids(step))
            for row in range(BATCH):
                for segment in range(1, batch["segment_ids"][row].max() + 1):
                    here = other["segment_ids"][row] == segment
                    is_bad = next(ids) in bad
                    assert np.array_equal(batch["segment_ids"][row] == segment, here)
                    assert (batch["loss_mask"][row] & here).any() or is_bad
                    if is_bad:
                        assert not batch["loss_mask"][row][here].any()
                        assert (batch["visual_target"][row][here] == -1).all()
        batches.close()
        assert {finding.where for finding in data.quarantine.findings} == bad
        assert {finding.reason for finding in data.quarantine.findings} == {"unreadable_media"}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_budget_of_nothing_stops_at_the_first_bad_image(num_workers, tokenizer, tmp_path):
    path = write_dataset(tmp_path, 8)
    for name in ("0.png", "1.png", "2.png"):
        (tmp_path / "images" / name).write_bytes(b"not an image")
    batches = make(path, tokenizer, num_workers=num_workers).batches()
    with pytest.raises(UserError) as caught:
        list(itertools.islice(batches, 4))
    assert f"{path}:" in str(caught.value) and "image 'images/" in str(caught.value)


def test_image_outside_its_folder_stops_the_run(tokenizer, tmp_path):
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "ok"}]
    path = write_jsonl(
        tmp_path / "data.jsonl", [{"image": "../secret.png", "conversations": turns}]
    )
    with pytest.raises(UserError, match=r"data\.jsonl:1: image '\.\./secret\.png' lies outside"):
        next(make(path, tokenizer).batches())


def test_bad_records_are_left_out_when_the_data_is_measured(tokenizer, tmp_path):
    path = write_dataset(tmp_path, 8)
    lines = path.read_text().splitlines()
    lines[2] = "{not json"
    lines[5] = lines[5].replace("<image>", "picture")
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="2 of the 8 records"):
        make(path, tokenizer)
    data = make(path, tokenizer, max_bad_fraction=0.25)
    assert data.describe()["bad_examples"] == 2
    shown = {where for step in range(8) for where in data.sample_ids(step)}
    assert shown == {f"{path}:{line}" for line in (1, 2, 4, 5, 7, 8)}


def test_the_table_is_measured_once(tokenizer, tmp_path, monkeypatch):
    path = write_dataset(tmp_path, 8)
    first = make(path, tokenizer, folder=tmp_path / "run")
    monkeypatch.setattr(Examples, "__getitem__", None)  # nothing can be measured any more
    again = make(path, tokenizer, folder=tmp_path / "run")
    assert np.array_equal(again.table.rows, first.table.rows)
    with pytest.raises(TypeError):
        make(path, tokenizer, folder=tmp_path / "run", max_seq_len=50)


def test_image_root_and_its_default(dataset, tokenizer, training_data):
    source = SourceConfig(path=str(dataset), image_root=str(dataset.parent))
    data = make(dataset, tokenizer, sources=(source,))
    assert equal(data.batch(0), training_data.batch(0))
    elsewhere = dataclasses.replace(source, image_root=str(dataset.parent / "images"))
    with pytest.raises(UserError, match="cannot be read"):
        next(make(dataset, tokenizer, sources=(elsewhere,)).batches())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sources": ()}, "data.sources is empty"),
        ({"weight": 0.0}, "is 0.0; it must be positive"),
        ({"weight": -1.0}, "is -1.0; it must be positive"),
    ],
)
def test_sources_must_show_something(fields, message, dataset, tokenizer):
    with pytest.raises(UserError) as caught:
        make(dataset, tokenizer, **fields)
    assert message in str(caught.value)


def test_a_source_that_is_never_shown_is_refused(dataset, tokenizer):
    with pytest.raises(UserError, match=r"shows none of its 30 examples .* more than 0\.0167"):
        make(dataset, tokenizer, weight=0.016)
    assert make(dataset, tokenizer, weight=0.0168).describe()["examples_per_epoch"] == 1


def test_fingerprint_is_computed_once(dataset, tokenizer, monkeypatch):
    data = make(dataset, tokenizer)
    first = data.fingerprint
    monkeypatch.setattr(data, "_examples", None)  # nothing left to read
    assert data.fingerprint == first
