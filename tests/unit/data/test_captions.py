import itertools

import numpy as np
import pytest
from PIL import Image

from metamorph_jax.config.schema_run import DataConfig, SourceConfig
from metamorph_jax.data.captions import NO_CAPTION, CaptionData, shift
from metamorph_jax.errors import UserError
from tests.data_files import small_tokenizer, write_images, write_jsonl

SIZE, BATCH, T = 4, 6, 5
CAPTIONS = ["cat", "dog", "cat", "dog cat", "cat", "a", "b"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    names = write_images(folder, len(CAPTIONS), SIZE)
    records = [caption_record(name, text) for name, text in zip(names, CAPTIONS, strict=True)]
    return write_jsonl(folder / "captions.jsonl", records)


def caption_record(image, text, question="<image>"):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": text}]
    return {"image": image, "conversations": turns}


def make(dataset, tokenizer, seed=0, shift_pixels=0, weight=1.0, **fields):
    sources = (SourceConfig(path=str(dataset), weight=weight),)
    data = DataConfig(sources=sources, max_seq_len=T, **fields)
    return CaptionData(
        data,
        tokenizer,
        image_size=SIZE,
        seed=seed,
        stage_name="encoder",
        global_batch_size=BATCH,
        shift_pixels=shift_pixels,
    )


def test_pairs_stay_together(dataset, tokenizer):
    data = make(dataset, tokenizer)
    batch = data.batch(0)
    assert batch["images"].shape == (BATCH, SIZE, SIZE, 3) and batch["images"].dtype == np.uint8
    assert batch["tokens"].shape == batch["token_mask"].shape == (BATCH, T)
    captions = []
    for row, where in enumerate(data.sample_ids(0)):
        number = int(where.rpartition(":")[2]) - 1
        ids = tokenizer.encode_text(CAPTIONS[number])
        assert batch["images"][row, 0, 0, 0] == number + 1
        assert batch["tokens"][row, batch["token_mask"][row]].tolist() == ids[:T]
        assert not batch["tokens"][row, ~batch["token_mask"][row]].any()
        captions.append(CAPTIONS[number])
    same_id = batch["caption_ids"][:, None] == batch["caption_ids"][None]
    same_text = [[a == b for b in captions] for a in captions]
    np.testing.assert_array_equal(same_id, same_text)


def test_epochs_show_each_pair_once(dataset, tokenizer):
    data = make(dataset, tokenizer)
    ids = [where for step in range(7) for where in data.sample_ids(step)]  # 42 rows, 6 epochs
    for epoch in range(6):
        assert len(set(ids[epoch * 7 : epoch * 7 + 7])) == 7
    assert ids[:7] != ids[7:14]


def test_batches_are_a_function_of_seed_and_step(dataset, tokenizer):
    data = make(dataset, tokenizer, shift_pixels=1)
    ahead = make(dataset, tokenizer, shift_pixels=1).batches(2)
    for step, batch in zip(range(2, 5), itertools.islice(ahead, 3), strict=True):
        for name, array in data.batch(step).items():
            np.testing.assert_array_equal(batch[name], array)
    ahead.close()
    shares = (range(BATCH // 2), range(BATCH // 2, BATCH))
    halves = [data.batch(2, places)["images"] for places in shares]
    np.testing.assert_array_equal(np.concatenate(halves), data.batch(2)["images"])
    assert make(dataset, tokenizer, seed=1).sample_ids(0) != data.sample_ids(0)


def test_shift_moves_and_repeats_the_edge():
    pixels = np.random.default_rng(0).integers(0, 255, (6, 6, 3), np.uint8)
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), mode="edge")
    places = {
        (down, right): padded[down : down + 6, right : right + 6]
        for down in range(5)
        for right in range(5)
    }
    seen = set()
    for key in range(300):
        moved = shift(pixels, 2, str(key))
        seen |= {place for place, view in places.items() if np.array_equal(view, moved)}
    assert seen == set(places)
    np.testing.assert_array_equal(shift(pixels, 2, "7"), shift(pixels, 2, "7"))
    assert shift(pixels, 0, "7") is pixels


def test_same_image_is_shifted_anew_each_time(tmp_path, tokenizer):
    gradient = np.arange(SIZE * SIZE * 3, dtype=np.uint8).reshape(SIZE, SIZE, 3)
    Image.fromarray(gradient).save(tmp_path / "a.png")
    path = write_jsonl(tmp_path / "one.jsonl", [caption_record("a.png", "cat")])
    images = make(path, tokenizer, shift_pixels=1).batch(0)["images"]
    assert len({image.tobytes() for image in images}) > 1


def test_describe_and_fingerprint(dataset, tokenizer):
    data = make(dataset, tokenizer)
    assert data.describe() == {
        "examples": 7,
        "examples_per_epoch": 7,
        "steps_per_epoch": 1.17,
    }
    assert data.fingerprint == make(dataset, tokenizer, num_workers=1).fingerprint
    assert data.fingerprint != make(dataset, tokenizer, shift_pixels=1).fingerprint
    assert data.fingerprint != make(dataset, tokenizer, seed=1).fingerprint


@pytest.mark.parametrize(
    "fields",
    [
        caption_record(None, "no image", "hello"),
        caption_record("a.png", "<image>", "hello"),
        caption_record(["a.png", "b.png"], "two", "<image><image>"),
        caption_record("a.png", "", "<image>"),
    ],
)
def test_only_pairs_are_taken(fields, tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "bad.jsonl", [fields])
    with pytest.raises(UserError, match=r"bad\.jsonl:1: the record is no pair"):
        next(make(path, tokenizer).batches())


def test_bad_pairs_take_no_part(dataset, tokenizer, tmp_path):
    records = [caption_record("a.png", "<image>", "hello")] + [
        caption_record(f"{index}.png", text) for index, text in enumerate(CAPTIONS)
    ]
    path = write_jsonl(dataset.parent / "some_bad.jsonl", records)
    data = make(path, tokenizer, max_bad_fraction=0.5)
    batch = next(data.batches())
    empty = [where.endswith(":1") for where in data.sample_ids(0)]
    assert (batch["caption_ids"] == NO_CAPTION).tolist() == empty
    assert not batch["images"][empty].any() and not batch["token_mask"][empty].any()


def test_a_source_that_is_never_shown_is_refused(dataset, tokenizer):
    with pytest.raises(UserError, match="shows none of its 7 examples in an epoch"):
        make(dataset, tokenizer, weight=0.07)
    assert make(dataset, tokenizer, weight=0.08).describe()["examples_per_epoch"] == 1


def test_fingerprint_is_computed_once(dataset, tokenizer, monkeypatch):
    data = make(dataset, tokenizer)
    first = data.fingerprint
    monkeypatch.setattr(data, "_records", None)  # nothing left to read
    assert data.fingerprint == first
