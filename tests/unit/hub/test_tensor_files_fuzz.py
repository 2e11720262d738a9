"""Damaged at random, a folder of weights is read or refused, and no file outside it is opened."""

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest

from metamorph_jax.errors import UserError
from metamorph_jax.hub.tensor_files import INDEX_FILE, TensorFolder
from tests.hub_folders import write_tensors

NUM_CASES = 500
TENSORS = {
    "a.weight": np.arange(15, dtype=np.float32).reshape(3, 5),
    "b.weight": np.arange(14, dtype=np.float16).reshape(7, 2),
    "empty": np.zeros((0, 3), np.float32),
}
VALUES = [None, True, -1, 0, 1, 2**31, 2**62, 2**70, 10**30, 0.5, float("nan"), float("inf")]
VALUES += ["F32", "BF16", "b.weight", "\x1b[2J", [], {}, [[]], [1] * 70, [0, 2**62, 2**62]]
PLACES = ["", "..", "x\x00.safetensors", "\ud800.safetensors", "a" * 300 + ".safetensors"]
PLACES += ["../secret.safetensors", "folder.safetensors/../../secret.safetensors"]
PLACES += ["folder.safetensors", "/secret.safetensors", {"a.weight": "../secret.safetensors"}]
BYTES = [b"\x00", b"\xff", b'"', b"[", b"]", b"{", b"}", b",", b":", b"-", b"9", b"\\ud800"]
BYTES += [b"9" * 5000, b"[" * 5000, b"NaN", b"e999", b"\xef\xbb\xbf", b"../"]


def mutate_bytes(rng, content):
    """Returns the content with bytes replaced, inserted, or cut out at one to three places."""
    for _ in range(rng.randint(1, 3)):
        begin = rng.randrange(len(content) + 1)
        end = min(len(content), begin + rng.choice((0, 1, 1, 2, 20)))
        content = content[:begin] + rng.choice([b"", *BYTES]) + content[end:]
    return content


def mutate_json(rng, content):
    """Returns the content with a value or a key, at any depth, made something else."""
    root = {"": json.loads(content)}
    holder, key = root, ""
    while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.85:
        holder = holder[key]
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    if isinstance(holder, dict) and holder is not root and rng.random() < 0.3:
        holder[str(rng.choice(PLACES))] = holder.pop(key)
    else:
        holder[key] = rng.choice(rng.choice((VALUES, PLACES)))
    return json.dumps(root[""]).encode()


def mutate_file(rng, file):
    """Changes the header of a safetensors file or an index; the header's length mostly fits."""
    content = file.read_bytes()
    mutate = rng.choice((mutate_bytes, mutate_json))
    if file.name == INDEX_FILE:
        file.write_bytes(mutate(rng, content))
        return
    end = 8 + int.from_bytes(content[:8], "little")
    header = mutate(rng, content[8:end])
    length = len(header) if rng.random() < 0.9 else rng.choice((0, 1, 2**31, 2**63, 2**64 - 1))
    file.write_bytes(length.to_bytes(8, "little") + header + content[end:])


@pytest.fixture
def opened(monkeypatch):
    """Returns the list of what Python opens from now on."""
    names, original = [], io.open

    def note(file, *arguments, **options):
        names.append(file)
        return original(file, *arguments, **options)

    monkeypatch.setattr("io.open", note)  # Path.open
    monkeypatch.setattr("builtins.open", note)  # numpy.memmap
    return names


def test_random_damage(tmp_path, opened):
    write_tensors(tmp_path / "original", TENSORS, max_shard_bytes=70)
    (tmp_path / "secret.safetensors").write_bytes(
        next((tmp_path / "original").glob("*.safetensors")).read_bytes()
    )
    original = {file.name: file.read_bytes() for file in (tmp_path / "original").iterdir()}
    assert len(original) == 3  # two files and their index
    folder = tmp_path / "model"
    (folder / "folder.safetensors").mkdir(parents=True)
    for name, content in original.items():
        (folder / name).write_bytes(content)
    rng, outcomes = random.Random(0), []
    for case in range(NUM_CASES):
        damaged = rng.choice(sorted(original))
        mutate_file(rng, folder / damaged)
        opened.clear()
        try:
            outcomes.append(read_all(folder))
        except UserError as error:
            outcomes.append(str(error).encode(errors="replace"))
        except Exception as error:
            pytest.fail(f"case {case}, {damaged}: {error!r}\n{(folder / damaged).read_bytes()}")
        assert opened and all(Path(file).parent == folder for file in opened), (case, opened)
        (folder / damaged).write_bytes(original[damaged])
    num_read = outcomes.count(None)
    assert 10 < num_read < NUM_CASES / 2, num_read  # both happen
    assert len(set(outcomes)) > 100  # in many ways


def read_all(folder):
    """Reads every number of a folder."""
    tensors = TensorFolder(folder)
    for name, spec in tensors.specs.items():
        value = tensors.read(name)
        assert value.shape == spec.shape and value.dtype == spec.dtype
        value.tobytes()
