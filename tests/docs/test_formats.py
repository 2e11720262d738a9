"""The example of each format on docs/formats.md is run, and what it wrote is opened."""

import re
from pathlib import Path

import pytest
from PIL import Image

from metamorph_jax.data.media import ImageBytes
from metamorph_jax.data.sources import open_source

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text()
SECTION = PAGE.partition("## Data files\n")[2].partition("\n## ")[0]
BLOCKS = dict(re.findall(r"^### `([^`]+)`\n.*?```python\n(.*?)```", SECTION, re.DOTALL | re.M))
PATHS = {
    ".jsonl": "data.jsonl",
    ".json": "data.json",
    ".parquet": "data.parquet",
    ".tar": "data-*.tar",
    ".array_record": "data.array_record",
    "tfds:NAME/SPLIT": "tfds:cats/train?data_dir=tfds",
}


def test_every_format_has_an_example():
    assert list(BLOCKS) == list(PATHS)


@pytest.mark.parametrize("name", PATHS)
def test_example_is_read_as_the_page_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save("cat.png")
    exec(compile(BLOCKS[name], f"formats.md {name}", "exec"), {"__name__": "formats"})
    (record,) = open_source(PATHS[name])
    png = Path("cat.png").read_bytes()
    assert record.images == (("cat.png",) if name.startswith(".json") else (ImageBytes(png),))
    if name in (".tar", "tfds:NAME/SPLIT"):
        assert record.caption == "A cat." and not record.turns
    else:
        assert [turn.speaker for turn in record.turns] in (["human", "gpt"], ["user", "assistant"])
        answer = record.turns[1]
        assert (answer.pieces or (answer.text,)) == ("A cat.",)
