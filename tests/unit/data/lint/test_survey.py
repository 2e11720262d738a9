"""A stage looked through: counts, lengths, plan, duplicates, samples; the same in any way."""

import dataclasses
import json
import os
import signal
import time

import numpy as np
import pytest
from PIL import Image

from metamorph_jax.config.schema_run import DataConfig, SourceConfig
from metamorph_jax.data.examples import Records
from metamorph_jax.data.images import ImageLoader
from metamorph_jax.data.lint.examine import Examiner, Writing
from metamorph_jax.data.lint.findings import FindingLog
from metamorph_jax.data.lint.media import MediaReader
from metamorph_jax.data.lint.survey import StageToSurvey, examined_chunks, survey_stage
from metamorph_jax.data.pipeline import TrainingData
from metamorph_jax.data.spans import ImageSpan
from metamorph_jax.data.templates import TEMPLATES
from metamorph_jax.data.views import view_layout
from metamorph_jax.errors import UserError
from tests.data_files import small_tokenizer, write_dataset, write_images, write_jsonl

NUM_RECORDS = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def stage(folder):
    path = str(write_dataset(folder, NUM_RECORDS))
    data = DataConfig(sources=(SourceConfig(path=path),), max_seq_len=128, max_images=6)
    writing = Writing(small_tokenizer(folder / "tokenizer"), TEMPLATES["metamorph_llama3"], 4)
    return StageToSurvey(
        name="vpit", data=data, writing=writing, image_size=8, global_batch_size=4, total_steps=90
    )


def survey(stage, folder, **options):
    """Returns the survey and (FILE:LINE, reason, trouble) of all findings."""
    with FindingLog(folder / "findings.jsonl") as log:
        found = survey_stage(stage, log, **options)
    lines = map(json.loads, (folder / "findings.jsonl").read_text("utf-8").splitlines())
    return found, [(line["where"], line["reason"], line["trouble"]) for line in lines]


def with_views(stage):
    """Returns a stage that shows images it only reads as several views."""
    data = dataclasses.replace(stage.data, image_geometry="anyres")
    layout = view_layout(data, stage.image_size, stage.writing.num_visual_tokens)
    writing = dataclasses.replace(stage.writing, layout=layout)
    return dataclasses.replace(stage, data=data, writing=writing)


@pytest.mark.parametrize("geometry", ["square", "anyres"])
def test_counts_and_plan_are_those_of_training(stage, folder, geometry):
    stage = with_views(stage) if geometry == "anyres" else stage
    found, _ = survey(stage, folder)
    training = TrainingData(
        stage.data,
        stage.writing.tokenizer,
        stage.writing.template,
        image_size=8,
        num_visual_tokens=4,
        seed=0,
        stage_name="vpit",
        global_batch_size=4,
    ).describe()
    (source,) = found.sources
    assert len(source.rows) == source.size == training["examples"] == NUM_RECORDS
    assert source.rows["num_images"].sum() == training["images"]
    assert source.rows["num_answer_images"].sum() == training["answer_images"]
    assert source.rows["num_supervised"].sum() == training["supervised_tokens"]
    assert source.rows["num_answers"].sum() == NUM_RECORDS
    assert found.plan.num_rows == training["rows_per_epoch"]
    assert round(found.plan.fill_fraction, 4) == training["fill_fraction"]
    places = found.plan.num_rows * stage.data.max_images
    assert found.plan.image_fill_fraction == training["images_per_epoch"] / places
    assert round(found.plan.steps_per_epoch, 2) == training["steps_per_epoch"]
    assert found.plan.total_epochs == 90 / found.plan.steps_per_epoch
    for sample in found.samples:  # pixels are found by the number of the span
        numbers = [span.number for span in sample.spans if isinstance(span, ImageSpan)]
        assert all(sample.pixels[number].shape == (8, 8, 3) for number in numbers)
    assert not found.plan.is_estimate
    assert found.worst_fraction == 0


@pytest.mark.parametrize("depth", ["decode", "headers", "none"])
def test_an_image_whose_size_is_unknown_is_found_once(stage, tmp_path, depth):
    write_images(tmp_path, 1)
    (tmp_path / "bad.png").write_bytes(b"no image")
    turns = [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "A cat."}]
    names = ("0.png", "bad.png", "gone.png")
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"image": name, "conversations": turns} for name in names]
    )
    stage = with_views(stage)
    data = dataclasses.replace(stage.data, sources=(SourceConfig(path=str(path)),))
    found, findings = survey(dataclasses.replace(stage, data=data), tmp_path, depth=depth)
    errors = [(where, reason) for where, reason, _ in findings if reason.endswith("media")]
    assert errors == [(f"{path}:2", "unreadable_media"), (f"{path}:3", "missing_media")]
    assert (found.sources[0].rows["length"] > 0).tolist() == [True, False, False]
    assert found.sources[0].rows["num_images"].tolist() == [3, 0, 0]


def test_workers_see_the_same(stage, folder):
    alone, with_workers = (survey(stage, folder, num_workers=number) for number in (0, 1))
    np.testing.assert_array_equal(alone[0].sources[0].rows, with_workers[0].sources[0].rows)
    assert alone[1] == with_workers[1]


class DeadlyReader(MediaReader):
    """Stands for a decoder with a bug: it ends the process at one record."""

    def look(self, medias, where):
        if where.endswith(":3"):
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # a signal takes a moment
        return super().look(medias, where)


def test_a_record_that_kills_workers_is_named(stage, folder, caplog):
    records = Records(stage.data, "key")
    readers = [DeadlyReader(ImageLoader(str(folder), 8), "decode")]
    examiner = Examiner(records, readers, stage.data, "vpit", stage.writing)
    findings = [f for _, seen in examined_chunks(examiner, 1) for f in seen.findings]
    killed = [finding for finding in findings if finding.reason == "killed_worker"]
    assert [finding.where for finding in killed] == [records.where(2)]
    assert "died" in caplog.text


def test_a_part_is_the_part_that_training_would_take_and_is_extrapolated(stage, folder):
    whole, _ = survey(stage, folder)
    part, _ = survey(stage, folder, max_records=60)
    assert part.num_records == 60
    assert part.sources[0].size == NUM_RECORDS
    assert part.plan.is_estimate
    assert part.plan.num_examples == NUM_RECORDS
    assert part.plan.num_rows == pytest.approx(whole.plan.num_rows, rel=0.15)
    more, _ = survey(stage, folder, max_records=61)
    kept = np.isin(part.sources[0].rows["content"], more.sources[0].rows["content"])
    assert kept.all()


def test_progress_reaches_the_end(stage, folder):
    told = []
    survey(stage, folder, on_progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (NUM_RECORDS, NUM_RECORDS)
    assert told == sorted(told)


def test_samples_show_what_the_tower_gets(stage, folder):
    found, _ = survey(stage, folder)
    assert 1 < len(found.samples) <= 4
    loader = ImageLoader(str(folder), 8)
    for sample in found.samples:
        images = [span for span in sample.spans if isinstance(span, ImageSpan)]
        assert len(images) == len(sample.pixels)
        for span, pixels in zip(images, sample.pixels, strict=True):
            np.testing.assert_array_equal(pixels, loader.load(span.media, "f:1"))


def test_samples_are_fitted_as_the_stage_says(stage, folder):
    look = {"processor": "clip", "pad_color": (1, 2, 3)}
    Image.fromarray(np.full((4, 40, 3), 200, np.uint8)).save(folder / "wide.png")
    path = str(write_jsonl(folder / "wide.jsonl", [talk("<image>\nWhat?", "Wide.", "wide.png")]))
    for geometry in ("pad", "square"):
        data = DataConfig(sources=(SourceConfig(path=path),), image_geometry=geometry)
        found, _ = survey(dataclasses.replace(stage, data=data, **look), folder)
        ((pixels,),) = [sample.pixels for sample in found.samples]
        loader = ImageLoader(str(folder), 8, geometry, (1, 2, 3), "clip")
        np.testing.assert_array_equal(pixels, loader.load("wide.png", "f:1"))
        assert (pixels[0, 0].tolist() == [1, 2, 3]) == (geometry == "pad")


def talk(question, answer, image=None, **more):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **({"image": image} if image else {}), **more}


def make_stage(stage, folder, *files):
    sources = [
        SourceConfig(path=str(write_jsonl(folder / f"{number}.jsonl", records)))
        for number, records in enumerate(files)
    ]
    return dataclasses.replace(stage, data=dataclasses.replace(stage.data, sources=tuple(sources)))


def test_duplicates_are_told_with_both_lines(stage, tmp_path):
    write_images(tmp_path, 2, size=8)
    (tmp_path / "twin.png").write_bytes((tmp_path / "0.png").read_bytes())
    first = [
        talk("<image>A?", "B.", "0.png", id="x"),
        talk("<image>A?", "B.", "1.png", id="x"),  # shows something else
        talk("<image>C?", "D.", "twin.png", id="y"),
        talk("<image>A?", "B.", "twin.png", id="z"),  # the same under another name
    ]
    second = [talk("<image>A?", "B.", "0.png", id="x")]  # ids are those of a file
    _, found = survey(make_stage(stage, tmp_path, first, second), tmp_path)
    a, b = f"{tmp_path}/0.jsonl", f"{tmp_path}/1.jsonl"
    assert [(where, reason) for where, reason, _ in found] == [
        (f"{a}:4", "duplicate_record"),
        (f"{b}:1", "duplicate_record"),
        (f"{a}:2", "duplicate_id"),
        (f"{a}:3", "duplicate_image"),
    ]
    assert all(f"{a}:1" in trouble for *_, trouble in found)
    assert "'twin.png' is the same file as '0.png'" in found[-1][2]


def test_without_pixels_names_tell_duplicates(stage, tmp_path):
    records = [talk("<image>A?", "B.", "0.png"), talk("<image>A?", "B.", "1.png")] * 2
    _, found = survey(make_stage(stage, tmp_path, records), tmp_path, depth="none")
    assert [where.rpartition(":")[2] for where, *_ in found] == ["3", "4"]


def test_each_bad_image_of_a_record_is_told_once(stage, tmp_path):
    write_images(tmp_path, 1, size=8)
    records = [talk("<image><image><image><image>?", "B.", ["gone", "0.png", "away", "gone"])]
    found, told = survey(make_stage(stage, tmp_path, records, records), tmp_path)
    assert ["'gone'" in trouble for *_, trouble in told] == [True, False, True, False]
    assert found.worst_fraction == 1


def test_without_a_tokenizer_nothing_is_measured(stage, folder):
    found, told = survey(dataclasses.replace(stage, writing=None), folder)
    assert found.plan is None
    assert not found.sources[0].rows["length"].any()
    assert found.sources[0].rows["is_readable"].all()
    assert found.sources[0].rows["num_images"].sum() > 0
    assert {reason for _, reason, _ in told} == {"tiny_image", "duplicate_record"}
    assert found.samples


def test_captions(stage, tmp_path):
    write_images(tmp_path, 2, size=8)
    records = [
        talk("<image>", "a cat", "0.png"),
        talk("<image>", "What is this? " * 40, "1.png"),
        talk("A cat?", "Yes.", None),
    ]
    captions = make_stage(dataclasses.replace(stage, objective="contrastive"), tmp_path, records)
    captions = dataclasses.replace(
        captions, data=dataclasses.replace(captions.data, max_seq_len=16)
    )
    found, told = survey(captions, tmp_path)
    reasons = [reason for _, reason, _ in told]
    assert reasons == ["over_long", "wrong_conversation"]
    assert found.plan.fill_fraction is None
    assert found.plan.steps_per_epoch == 2 / 4
    assert found.sources[0].rows["length"].max() == 16
    assert {sample.kind for sample in found.samples} == {"caption"}


def test_all_unusable_sources_are_named_at_once(stage, tmp_path):
    sources = tuple(SourceConfig(path=str(tmp_path / name)) for name in ("a.jsonl", "b.jsonl"))
    data = dataclasses.replace(stage.data, sources=sources)
    with pytest.raises(UserError, match=r"(?s)a\.jsonl.*b\.jsonl"):
        survey(dataclasses.replace(stage, data=data), tmp_path)
