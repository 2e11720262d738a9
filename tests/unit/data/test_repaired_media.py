"""What a run that stopped for its bad media does at the next start, repaired or not."""

import json

import pytest
from PIL import Image

from metamorph_jax.config.schema_run import DataConfig, SourceConfig
from metamorph_jax.data.pipeline import TrainingData
from metamorph_jax.data.templates import TEMPLATES
from metamorph_jax.errors import UserError
from tests.data_files import small_tokenizer
from tests.video_files import write_video

TURNS = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A thing."}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def make(folder, tokenizer, kind, start_step=0):
    data = DataConfig(
        sources=(SourceConfig(path=str(folder / "data.jsonl"), kind=kind),),
        max_seq_len=96,
        max_images=4,
        max_bad_fraction=0.1,
    )
    return TrainingData(
        data,
        tokenizer,
        TEMPLATES["metamorph_llama3"],
        image_size=4,
        num_visual_tokens=2,
        seed=0,
        stage_name="vpit",
        global_batch_size=2,
        folder=folder / "run",
        start_step=start_step,
    )


def write(folder, records):
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_repaired_video_takes_part(tmp_path, tokenizer):
    videos = [{"video": f"{number}.mp4", "conversations": TURNS} for number in range(3)]
    write(tmp_path, videos)
    for number in (0, 2):
        write_video(tmp_path / f"{number}.mp4", 20)
    for _ in range(2):  # the second start is as strict as the first
        with pytest.raises(UserError, match=r"data\.jsonl:2: video '1\.mp4' cannot be read"):
            make(tmp_path, tokenizer, "video_qa")
    write_video(tmp_path / "1.mp4", 20)
    data = make(tmp_path, tokenizer, "video_qa")
    assert len(data.table.usable) == 3 and not data.table.findings
    data.plan.prepare(5)
    assert sorted(set(data.plan.epoch(0).examples.tolist())) == [0, 1, 2]
    assert not data.quarantine.findings


def test_a_repaired_image_is_counted_no_more(tmp_path, tokenizer):
    question = [{"from": "human", "value": "<image> What?"}, TURNS[1]]
    write(tmp_path, [{"image": f"{n}.png", "conversations": question} for n in range(6)])
    for number in range(6):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    good = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(good[:30])
    with pytest.raises(UserError, match="1 of the 6 records"):
        for batch in make(tmp_path, tokenizer, "conversation").batches():
            assert batch
    with pytest.raises(UserError, match="1 of the 6 records"):
        make(tmp_path, tokenizer, "conversation", start_step=1)
    (tmp_path / "3.png").write_bytes(good)
    assert not make(tmp_path, tokenizer, "conversation", start_step=1).quarantine.findings
