"""The features file: what the visualizer reads, written whole or not at all."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from metamorph_jax.cache_features import image_paths, main
from metamorph_jax.decoding.features import Encoder
from metamorph_jax.errors import UserError
from metamorph_jax.metrics.phases import read_phases
from tests.tiny_run import tiny_config, write_tiny_run


def write_records(path, images):
    said = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "yes"}]
    lines = [json.dumps({"image": image, "conversations": said}) + "\n" for image in images]
    path.write_text("".join(lines))


def test_file_holds_each_image_once_in_order(tmp_path, capsys):
    run, data = tmp_path / "run", tmp_path / "data"
    write_tiny_run(run, tiny_config())
    data.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    for index in range(3):
        Image.fromarray(pixels[index]).save(data / f"{index}.png")
    write_records(data / "a.jsonl", ["2.png", "0.png", "2.png"])
    write_records(data / "b.jsonl", ["1.png", "0.png"])
    out = tmp_path / "new" / "features.safetensors"
    arguments = [
        "--checkpoint",
        run / "checkpoints",
        "--jsonl",
        f"{data / 'a.jsonl'},{data / 'b.jsonl'}",
    ]
    arguments += ["--image_root", data, "--out", out, "--batch_size", 2]
    assert main([str(argument) for argument in arguments]) == 0
    encoder = Encoder.load(run, batch_size=2)
    with safe_open(out, framework="numpy") as file:
        features, metadata = file.get_tensor("features"), file.metadata()
    assert json.loads(metadata["images"]) == ["2.png", "0.png", "1.png"]
    assert metadata["encoder_fingerprint"] == encoder.fingerprint
    np.testing.assert_array_equal(features, encoder.encode(pixels[[2, 0, 1]], 3))
    assert features.shape == (3, 4, 24)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert list(read_phases(run)) == ["cache_features"]
    assert "3 images, 4 tokens of 24" in capsys.readouterr().out


def test_files_without_images_are_refused(tmp_path):
    said = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    (tmp_path / "text.jsonl").write_text(json.dumps({"conversations": said}) + "\n")
    with pytest.raises(UserError, match="no record names an image file"):
        image_paths([str(tmp_path / "text.jsonl")])
