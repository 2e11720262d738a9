"""The tower of an exported MetaMorph, alone, against the exported model itself."""

import dataclasses
import json
import shutil

import pytest
import torch

from metamorph_jax.errors import UserError
from metamorph_jax.hub.remote.modeling_metamorph import MetaMorphForConditionalGeneration
from metamorph_jax.visualizer.encoder import FrozenEncoder
from tests import tolerances
from tests.visualizer_files import MODEL, write_encoder

PICTURES = torch.randint(
    0, 256, (3, 12, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("export"))


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "export")


def test_tokens_are_the_exported_models(folder):
    model = MetaMorphForConditionalGeneration.from_pretrained(folder).model
    pixels = PICTURES.permute(0, 3, 1, 2) / 127.5 - 1
    expected = model.encode_images(pixels)
    encoder = FrozenEncoder(folder, MODEL)
    found = encoder(PICTURES)
    assert encoder.image_size == 12
    assert (found - expected).abs().max() <= tolerances.PARITY
    assert torch.allclose(found.norm(dim=-1), torch.ones(3, 4))
    assert not found.requires_grad


def test_statistics_of_the_folder_are_used(folder):
    before = FrozenEncoder(folder, MODEL)(PICTURES)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3]}))
    assert not torch.allclose(FrozenEncoder(folder, MODEL)(PICTURES), before)


def test_pieces_of_weights_are_read_through_their_index(folder, tmp_path):
    before = FrozenEncoder(folder, MODEL)(PICTURES)
    model = MetaMorphForConditionalGeneration.from_pretrained(folder)
    model.save_pretrained(tmp_path / "pieces", max_shard_size="4KB")
    assert (tmp_path / "pieces/model.safetensors.index.json").is_file()
    assert torch.equal(FrozenEncoder(tmp_path / "pieces", MODEL)(PICTURES), before)


def changed(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_padded_pictures_belong_to_a_model_that_saw_such(folder):
    padded = dataclasses.replace(MODEL, view="pad")
    with pytest.raises(UserError, match=r"image_geometry='square', but config.model.view='pad'"):
        FrozenEncoder(folder, padded)
    (folder / "processor_config.json").write_text('{"image_geometry": "pad"}')
    assert FrozenEncoder(folder, padded).image_size == 12


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json: no such file; an exported"),
        (lambda f: changed(f / "config.json", model_type="llava"), "model_type='llava', expected"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: no such file"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04K\x01."), "not a whole"),
        (lambda f: changed(f / "config.json", num_image_tokens=9), "9 visual tokens of width 6"),
        (
            lambda f: (f / "processor_config.json").write_text('{"image_geometry": "pad"}'),
            "image_geometry='pad', but config.model.view='squash' shows them otherwise; "
            "use 'pad' or 'same_crop'",
        ),
    ],
)
def test_what_does_not_fit_is_told(folder, damage, told):
    damage(folder)
    with pytest.raises(UserError) as error:
        FrozenEncoder(folder, MODEL)
    assert told in str(error.value)
