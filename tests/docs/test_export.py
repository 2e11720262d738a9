"""The code of docs/export.md runs as it stands, where there is only the exported folder."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.data_files import small_tokenizer
from tests.exported import write_export
from tests.model_helpers import random_params
from tests.tiny import tiny_model

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "export.md").read_text()


def test_example_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    tokenizer = small_tokenizer(tmp_path / "tokenizer")
    config = tiny_model()
    llm = dataclasses.replace(config.llm, vocab_size=tokenizer.vocab_size)
    config = dataclasses.replace(config, llm=llm)
    params = random_params(config, seed=3)
    params["language_model"]["lm_head"]["kernel"][:, tokenizer.special.image_start] *= 4
    write_export(tmp_path / "exported" / "model", config, params, tokenizer)
    Image.new("RGB", (30, 20), "red").save(tmp_path / "cat.png")
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"torch\.Size\(\[[1-4], 4, 8\]\)", done.stdout)
