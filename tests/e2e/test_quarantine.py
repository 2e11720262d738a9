"""A run over a folder with broken files trains on, lists exactly those, keeps its budget."""

import json

import pytest

from tests.e2e.world import history, make_world, read_records, train, write_records


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Returns a world of 60 records, three of them (5 %) with broken images of their own."""
    folder = make_world(tmp_path_factory.mktemp("broken"))
    records = read_records(folder) * 3
    images = folder / "images"
    for index in range(0, 60):
        records[index] = json.loads(json.dumps(records[index]))
        name = f"own{index}.png"
        (images / name).write_bytes((images / records[index]["image"]).read_bytes())
        records[index]["image"] = name
    records = records[:60]
    (images / "own7.png").write_bytes((images / "own7.png").read_bytes()[:300])
    (images / "own21.png").write_bytes(b"<html>not found</html>")
    (images / "own40.png").unlink()
    write_records(folder, records)
    return folder


BAD = {8: "unreadable_media", 22: "unreadable_media", 41: "missing_media"}


@pytest.mark.slow
def test_trains_on_and_lists_exactly_the_broken_ones(world):
    budget = [f"--config.stages.{name}.data.max_bad_fraction=0.05" for name in ("adapter", "vpit")]
    result = train(world, *budget, workdir="lenient")
    assert result.returncode == 0, result.stderr
    lines = (world / "lenient/data/vpit/quarantine.jsonl").read_text().splitlines()
    found = {
        int(entry["where"].rpartition(":")[2]): entry["reason"] for entry in map(json.loads, lines)
    }
    assert found == BAD and len(lines) == len(BAD)
    assert all(len(json.loads(line)["sha256"]) == 64 for line in lines)
    assert len(history(world, "lenient")) == 40


@pytest.mark.slow
def test_stops_when_the_budget_says_so_and_loses_nothing(world):
    flag = "--config.stages.{}.data.max_bad_fraction={}"
    flags = [flag.format("adapter", 0.05), flag.format("vpit", 0.04)]
    result = train(world, *flags, workdir="strict")
    assert result.returncode == 2
    assert "3 of the 60 records" in result.stderr and "Traceback" not in result.stderr
    done = len(history(world, "strict"))
    assert done > 20
    flags = [flag.format("adapter", 0.05), flag.format("vpit", 0.05)]
    result = train(world, *flags, workdir="strict")
    assert result.returncode == 0 and f"resuming at step {done}" in result.stdout, result.stderr
    assert history(world, "strict") == history(world, "lenient")
