import dataclasses
import itertools
import shutil

import numpy as np
import pytest

from metamorph_jax.config.schema_run import DataConfig, SourceConfig
from metamorph_jax.data.pipeline import TrainingData
from metamorph_jax.errors import UserError
from tests.data_files import small_tokenizer, write_dataset, write_jsonl

P, SIZE, BATCH = 2, 4, 4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), 30)


def make(dataset, tokenizer, *, seed=0, stage_name="vpit", batch=BATCH, weight=1.0, **fields):
    sources = (SourceConfig(path=str(dataset), weight=weight),)
    data = DataConfig(**{"sources": sources, "max_seq_len": 96, "max_images": 5} | fields)
    return TrainingData(
        data,
        tokenizer,
        "metamorph_llama3",
        image_size=SIZE,
        num_visual_tokens=P,
        seed=seed,
        stage_name=stage_name,
        global_batch_size=batch,
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
    store = training_data._store
    by_where = {store.where(index): store[index] for index in range(len(store))}
    for row in range(BATCH):
        examples = [by_where[next(ids)] for _ in range(batch["segment_ids"][row].max())]
        paths = [path for example in examples for path in example.images]
        colours = batch["images"][row, :, 0, 0, 0].tolist()
        expected = [int(path.split("/")[1].split(".")[0]) + 1 for path in paths]
        assert colours == expected + [0] * (5 - len(expected))


def test_an_epoch_shows_everything_once(training_data):
    plan = training_data.plan(0)
    assert sorted(plan.examples.tolist()) == list(range(30))
    assert training_data.plan(1).fingerprint != plan.fingerprint


def test_epochs_are_laid_end_to_end(dataset, tokenizer):
    data = make(dataset, tokenizer, batch=1)
    first, second = len(data.plan(0)), len(data.plan(1))

    def ids(epoch, row):
        return [data._store.where(index) for index in data.plan(epoch)[row].tolist()]

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
    halves = [training_data.batch(2, index, 2) for index in range(2)]
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
        make(dataset, tokenizer, weight=1.5),
        make(write_dataset(tmp_path / "other", 30, seed=1), tokenizer),
    ]
    prints = {other.fingerprint for other in others} | {training_data.fingerprint}
    assert len(prints) == len(others) + 1


def test_unreadable_image_stops_with_its_name_from_any_process(tokenizer, tmp_path):
    path = write_dataset(tmp_path, 8)
    for name in ("0.png", "1.png", "2.png"):
        (tmp_path / "images" / name).write_bytes(b"not an image")
    messages = []
    for num_workers in (0, 1):
        batches = make(path, tokenizer, num_workers=num_workers).batches()
        with pytest.raises(UserError) as caught:
            list(itertools.islice(batches, 4))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"{path}:")
    assert "image 'images/" in messages[0] and "\n" not in messages[0]
    with pytest.raises(UserError, match="image 'images/"):
        make(path, tokenizer).check_images()


def test_check_images_counts_each_file_once(training_data):
    assert training_data.check_images() == 5


def test_image_outside_its_folder_stops_the_run(tokenizer, tmp_path):
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "ok"}]
    path = write_jsonl(
        tmp_path / "data.jsonl", [{"image": "../secret.png", "conversations": turns}]
    )
    with pytest.raises(UserError, match=r"data\.jsonl:1: image '\.\./secret\.png' lies outside"):
        make(path, tokenizer).batch(0)


def test_image_root_and_its_default(dataset, tokenizer, training_data):
    source = SourceConfig(path=str(dataset), image_root=str(dataset.parent))
    data = make(dataset, tokenizer, sources=(source,))
    assert equal(data.batch(0), training_data.batch(0))
    elsewhere = dataclasses.replace(source, image_root=str(dataset.parent / "images"))
    with pytest.raises(UserError, match="cannot be read"):
        make(dataset, tokenizer, sources=(elsewhere,)).check_images()


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
    monkeypatch.setattr(data, "_store", None)  # nothing left to read
    assert data.fingerprint == first
