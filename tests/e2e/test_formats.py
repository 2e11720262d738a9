"""One mixture of every format and several kinds, trained, stopped and gone on with workers."""

import json

import pytest

from metamorph_jax.data.sources.array_record import write_array_record
from tests.e2e.world import history, make_world, read_records, train
from tests.source_files import write_parquet, write_tar
from tests.video_files import write_frames, write_video

pytestmark = pytest.mark.slow


def mixture(folder):
    """Writes the records of a world in other formats; returns the sources of a recipe."""
    records = read_records(folder)
    pixels = {
        record["image"]: (folder / "images" / record["image"]).read_bytes() for record in records
    }
    turns = [record["conversations"] for record in records]
    (folder / "list.json").write_text(json.dumps(records))
    for shard in range(2):
        mine = slice(12 * shard, 12 * shard + 12)
        images = [[{"bytes": pixels[record["image"]], "path": None}] for record in records[mine]]
        columns = {"images": images, "conversations": turns[mine]}
        write_parquet(folder / f"part-{shard}.parquet", columns)
    members = []
    for number, data in enumerate(pixels.values()):
        members += [(f"{number:03}.png", data), (f"{number:03}.txt", f"thing {number}".encode())]
    write_tar(folder / "pairs.tar", members)
    write_array_record(folder / "records.array_record", records)
    write_video(folder / "images" / "clip.mp4", 12, fps=4)
    question = [{"from": "human", "value": "What moves?"}, {"from": "gpt", "value": "A thing."}]
    clip = {"video": "clip.mp4", "conversations": question}
    write_frames(folder / "images" / "frames", 5)
    clips = [clip, clip | {"video": "frames"}]
    (folder / "videos.jsonl").write_text("".join(json.dumps(fields) + "\n" for fields in clips))
    root = {"image_root": f"{folder}/images"}
    return [
        {"path": f"{folder}/list.json", "weight": 0.5} | root,
        {"path": f"{folder}/part-*.parquet"},
        {"path": f"{folder}/pairs.tar", "kind": "text_to_image"},
        {"path": f"{folder}/pairs.tar", "kind": "image_qa", "max_count": 5},
        {"path": f"{folder}/records.array_record", "response_format": "short_answer"} | root,
        {"path": f"{folder}/videos.jsonl", "kind": "video_qa", "weight": 4} | root,
        {"path": f"{folder}/videos.jsonl", "kind": "pure_video", "weight": 4} | root,
    ]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = make_world(tmp_path_factory.mktemp("formats"))
    sources = mixture(folder)
    recipe = (folder / "recipe.py").read_text()
    begin = recipe.index('"sources": [')
    end = recipe.index("],", begin) + 2
    (folder / "recipe.py").write_text(recipe[:begin] + f'"sources": {sources!r},' + recipe[end:])
    return folder


def test_every_format_is_trained_on_and_resumed(world):
    done = train(world, workdir="unbroken")
    assert done.returncode == 0, done.stderr
    assert train(world, "--max_steps=33", workdir="cut").returncode == 0
    workers = "--config.stages.vpit.data.num_workers=1"
    done = train(world, workers, workdir="cut")
    assert done.returncode == 0 and "resuming at step 33" in done.stdout, done.stderr
    assert history(world, "cut") == history(world, "unbroken")
    plan = json.loads((world / "cut/data/vpit/plan.json").read_text())
    assert len(plan["sections"][0]["weights"]) == 7
    listed = (world / "cut/data/vpit/quarantine.jsonl").read_text().splitlines()
    found = {(bad["where"], bad["reason"]) for bad in map(json.loads, listed)}
    videos = f"{world}/videos.jsonl"  # of which the tasks of `pure_video` are longer than a row
    assert found == {(f"{videos}:1", "over_long"), (f"{videos}:2", "nothing_to_learn")}
