"""Writes what a run on shapes needs besides its recipe: a tokenizer of the world's words.

    python -m metamorph_jax.data.shapes --out DIR

The same command writes the same bytes. Pictures and conversations need no files: `source.py`.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from metamorph_jax.config.schema_run import SourceConfig
from metamorph_jax.data.conversation import Text
from metamorph_jax.data.kinds import KINDS, make_conversation
from metamorph_jax.data.shapes.source import ShapesSource, no_files
from metamorph_jax.data.small_tokenizer import train_tokenizer
from metamorph_jax.errors import run_main

VOCAB_SIZE = 1024  # an upper bound; the sentences need fewer
_NUM_READ = 1000  # records of each kind


def training_texts() -> Iterator[str]:
    """Yields the texts that the tokenizer learns its words from, cut as they will be used."""
    yield from ("user", "assistant", "system") * 100
    for kind in KINDS:
        name = "captions" if kind == "conversation" else kind
        source = ShapesSource(f"shapes:{name}/train?count={_NUM_READ}")
        config = SourceConfig(path=source.path, kind=kind)
        for index, record in enumerate(source):
            conversation = make_conversation(record, config, f"words/{index}", no_files)
            for turn in conversation.turns:
                yield from (part.text for part in turn.parts if isinstance(part, Text))


def main(arguments: Sequence[str]) -> None:
    """The command line: see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m metamorph_jax.data.shapes")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    folder = parser.parse_args(arguments).out / "tokenizer"
    count = train_tokenizer(training_texts(), VOCAB_SIZE, folder)
    print(f"{folder}: {count} ids")


if __name__ == "__main__":
    run_main(main)
