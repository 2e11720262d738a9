"""The records on docs/formats.md yield the samples that stand below them."""

import json
import re
from pathlib import Path

import pytest

from metamorph_jax.data.conversation import Text
from metamorph_jax.data.kinds import KINDS
from metamorph_jax.data.video import VideoInfo
from tests.kind_samples import make

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text()
SECTION = PAGE.split("\n## Kinds\n")[1].split("\n## ")[0]
EXAMPLE = re.compile(r"### `(\w+)`\n.*?```json\n(.*?)```\n```text\n(.*?)```", re.DOTALL)
EXAMPLES = {kind: (record, sample) for kind, record, sample in EXAMPLE.findall(SECTION)}


def test_each_kind_has_a_short_example():
    assert set(EXAMPLES) | {"conversation"} == set(KINDS)
    assert all(len(record.splitlines()) <= 5 for record, _ in EXAMPLES.values())


@pytest.mark.parametrize("kind", EXAMPLES)
def test_example(kind):
    record, sample = EXAMPLES[kind]
    made = make(kind, json.loads(record), key="docs", info=VideoInfo(3.0, 25.0, 75))
    assert sample.splitlines() == [f"{turn.role}: {_written(turn)}" for turn in made.turns]


def _written(turn) -> str:
    parts = [part.text if isinstance(part, Text) else f"[{part.media}]" for part in turn.parts]
    return "".join(parts).replace("\n", "\\n")
