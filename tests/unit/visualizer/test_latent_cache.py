"""Latents on disk: equal to those computed, whole files only, and a key that tells runs apart."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from metamorph_jax.data.faults import BadSample
from metamorph_jax.errors import UserError
from metamorph_jax.visualizer import latent_cache
from metamorph_jax.visualizer.latent_cache import build_cache
from metamorph_jax.visualizer.latents import create_latents
from metamorph_jax.visualizer.parts import load_parts
from metamorph_jax.visualizer.pictures import find_pictures, middle_square, painted_square
from tests import tolerances
from tests.visualizer_files import SD_MODEL, write_data, write_stable_diffusion

LATENTS = SD_MODEL.latents


@pytest.fixture
def codec(tmp_path):
    return create_latents(LATENTS, load_parts(write_stable_diffusion(tmp_path), SD_MODEL).vae)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(latent_cache, "PICTURES_PER_FILE", 4)
    monkeypatch.setattr(latent_cache, "_BATCH_SIZE", 3)
    return find_pictures(write_data(tmp_path / "data", size=(30, 20)).image_root, None)


def build(tmp_path, pictures, codec, **changes):
    arguments = {"config": LATENTS, "vae_fingerprint": "f"} | changes
    return build_cache(tmp_path / "latents", pictures, codec, **arguments)


def files(tmp_path):
    return sorted((tmp_path / "latents").rglob("*.safetensors"))


def test_latents_are_those_of_the_codec(tmp_path, pictures, codec):
    told = []
    cache = build(tmp_path, pictures, codec, report=told.append)
    assert told == [4, 8, 10]
    assert len(files(tmp_path)) == 3
    for index in (0, 3, 4, 9):
        square = torch.from_numpy(middle_square(pictures.open(index), 16).copy())[None]
        difference = cache.row(index) - codec.encode(square)[0]
        assert difference.abs().max() <= tolerances.FLOAT32_REORDERED


def test_padded_pictures_have_latents_of_their_own(tmp_path, pictures, codec):
    middle, same = (build(tmp_path, pictures, codec, view=view) for view in ("squash", "same_crop"))
    assert len(files(tmp_path)) == 3
    padded = build(tmp_path, pictures, codec, view="pad")
    assert len(files(tmp_path)) == 6
    square = torch.from_numpy(painted_square(pictures.open(3), 16, "pad").copy())[None]
    difference = padded.row(3) - codec.encode(square)[0]
    assert difference.abs().max() <= tolerances.FLOAT32_REORDERED
    assert not torch.allclose(padded.row(3), middle.row(3), atol=1e-2)
    assert torch.equal(same.row(3), middle.row(3))


def test_processes_share_the_work_and_workers_change_nothing(tmp_path, pictures, codec):
    for rank in (1, 0):
        cache = build(tmp_path, pictures, codec, share=(rank, 2), num_workers=1)
        if rank == 1:
            assert [file.name for file in files(tmp_path)] == ["00000001.safetensors"]
    alone = build(tmp_path / "alone", pictures, codec)
    assert all(torch.equal(cache.row(index), alone.row(index)) for index in range(10))


def test_only_what_is_missing_or_cut_off_is_computed(tmp_path, pictures, codec):
    build(tmp_path, pictures, codec)
    latent_cache._open.cache_clear()
    whole, cut = files(tmp_path)[:2]
    content, times = cut.read_bytes(), whole.stat().st_mtime_ns
    cut.write_bytes(content[:-8])
    build(tmp_path, pictures, codec)
    assert cut.read_bytes() == content
    assert whole.stat().st_mtime_ns == times


@pytest.mark.parametrize(
    "changes",
    [
        {"vae_fingerprint": "g"},
        {"config": dataclasses.replace(LATENTS, picture_size=32, size=16)},
    ],
)
def test_other_autoencoders_and_sizes_have_files_of_their_own(tmp_path, pictures, codec, changes):
    build(tmp_path, pictures, codec)
    build(tmp_path, pictures, codec, **changes)
    assert len({file.parent for file in files(tmp_path)}) == 2


def test_broken_pictures_are_flagged(tmp_path, pictures, codec):
    (tmp_path / "data/images/7.png").write_bytes(b"no picture")
    cache = build(tmp_path, pictures, codec)
    with pytest.raises(BadSample, match=r"7\.png: could not be used"):
        cache.row(7)
    assert cache.row(6).shape == (4, 8, 8)
    assert load_file(files(tmp_path)[1])["is_bad"].tolist() == [0, 0, 0, 1]


def test_a_folder_that_cannot_be_written_is_told(tmp_path, pictures, codec):
    (tmp_path / "latents").write_text("a file")
    with pytest.raises(UserError, match="latents could not be written"):
        build(tmp_path, pictures, codec)
