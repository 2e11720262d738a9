"""D19 while the data is measured: a video whose header ends the process costs one sample."""

import os
import signal

from metamorph_jax.config.schema_run import DataConfig, SourceConfig
from metamorph_jax.data.example_table import load_or_measure
from metamorph_jax.data.examples import Examples, Records, Rendered
from metamorph_jax.data.pipeline import image_loaders
from metamorph_jax.data.templates import TEMPLATES
from tests.data_files import small_tokenizer, write_jsonl

COUNT, DEADLY = 1100, 700
TURNS = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]


class DeadlyExamples(Examples):
    """Ends the process where a broken demuxer would."""

    def __getitem__(self, index: int) -> Rendered:
        if index == DEADLY:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().__getitem__(index)


def test_d19_a_record_that_kills_while_it_is_measured_is_left_out(tmp_path):
    file = write_jsonl(tmp_path / "data.jsonl", [{"conversations": TURNS}] * COUNT)
    data = DataConfig(sources=(SourceConfig(path=str(file)),), max_seq_len=96, max_images=1)
    tokenizer = small_tokenizer(tmp_path / "tokenizer")
    loaders = image_loaders(data, 4, (0, 0, 0))
    template = TEMPLATES["metamorph_llama3"]
    examples = DeadlyExamples(Records(data, "key"), loaders, data, tokenizer, template, 2)
    table = load_or_measure(examples, None, num_workers=1)
    (found,) = table.findings
    assert (found.reason, found.where) == ("killed_worker", f"{file}:{DEADLY + 1}")
    assert len(table.usable) == COUNT - 1
