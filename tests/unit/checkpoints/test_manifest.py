import json
import os

import numpy as np
import pytest

from metamorph_jax.checkpoints.manifest import (
    DamagedCheckpointError,
    read_manifest,
    verify,
    write_manifest,
)
from metamorph_jax.checkpoints.naming import ArraySpec
from metamorph_jax.errors import UserError

ARRAYS = {"params/w": ArraySpec((2, 3), "float32"), "step": ArraySpec((), "int32")}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "state" / "d").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(4):
        (tmp_path / "state" / "d" / f"f{number}").write_bytes(random.bytes(1000 * number))
    (tmp_path / "meta.json").write_text("{}")
    write_manifest(tmp_path, ARRAYS)
    return tmp_path


def test_round_trip(folder):
    manifest = verify(folder)
    assert manifest.arrays == ARRAYS
    assert sorted(manifest.files) == ["meta.json", *(f"state/d/f{number}" for number in range(4))]
    assert manifest.files["state/d/f3"].size == 3000
    assert manifest == read_manifest(folder)


def test_every_single_bit_of_the_manifest_counts(folder):
    path = folder / "manifest.json"
    content = path.read_bytes()
    random = np.random.default_rng(1)
    for position in random.choice(8 * len(content), size=300, replace=False):
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        with pytest.raises(DamagedCheckpointError, match=r"manifest\.json"):
            read_manifest(folder)


def test_random_bits_of_the_files_count(folder):
    random = np.random.default_rng(2)
    for _ in range(60):
        number = random.integers(1, 4)
        path = folder / "state" / "d" / f"f{number}"
        content = path.read_bytes()
        position = random.integers(8 * len(content))
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        with pytest.raises(DamagedCheckpointError, match=f"state/d/f{number}.*altered"):
            verify(folder)
        path.write_bytes(content)
    verify(folder)


def test_swapped_files_of_equal_size(folder):
    one, two = folder / "state" / "d" / "f1", folder / "state" / "d" / "f2"
    one.write_bytes(two.read_bytes()[:1000])
    with pytest.raises(DamagedCheckpointError, match=r"f1.*altered"):
        verify(folder)


def test_dangling_link_and_folder_in_place_of_a_file(folder):
    path = folder / "state" / "d" / "f1"
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(DamagedCheckpointError, match="f1: No such file"):
        verify(folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(DamagedCheckpointError, match="f1"):
        verify(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", None])
def test_garbage_and_absence_of_the_manifest(folder, content):
    path = folder / "manifest.json"
    os.unlink(path) if content is None else path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"manifest\.json"):
        verify(folder)


def test_a_later_format_is_no_damage(folder, monkeypatch):
    monkeypatch.setattr("metamorph_jax.checkpoints.manifest.FORMAT_VERSION", 99)
    write_manifest(folder, ARRAYS)
    monkeypatch.undo()
    assert json.loads((folder / "manifest.json").read_text())["format_version"] == 99
    with pytest.raises(UserError, match="format version 99"):
        verify(folder)
