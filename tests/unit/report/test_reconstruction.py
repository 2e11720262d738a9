"""The report's section about reconstruction sheets."""

import json

import numpy as np
from PIL import Image

from metamorph_jax.report.reconstruction import sheets_sections


def write_sheet(run, step, cosine):
    folder = run / "pictures"
    folder.mkdir(exist_ok=True)
    numbers = {"step": step, "mean_cosine": cosine, "mean_picture_cosine": 0.5}
    numbers |= {"num_drawn": 0 if cosine is None else 7, "num_pictures": 8}
    (folder / f"step_{step:08d}.json").write_text(json.dumps(numbers))
    pixels = np.full((8, 8, 3), step % 256, np.uint8)
    Image.fromarray(pixels).save(folder / f"step_{step:08d}.png")


def test_no_sheet_no_section(tmp_path):
    assert sheets_sections(tmp_path) == []


def test_the_newest_is_shown_and_all_are_listed(tmp_path):
    write_sheet(tmp_path, 100, None)
    write_sheet(tmp_path, 1000, 0.75)
    (tmp_path / "pictures/step_00002000.json").write_text("{")  # its picture is not there yet
    ((title, content),) = sheets_sections(tmp_path)
    assert title == "Reconstruction"
    assert "Step 1000." in content
    assert content.count("<img") == 1
    assert "<td>100</td><td>0 of 8</td><td></td><td>0.500</td>" in content
    assert "<td>1000</td><td>7 of 8</td><td>0.750</td><td>0.500</td>" in content
