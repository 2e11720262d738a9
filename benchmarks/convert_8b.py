"""Llama-3.1-8B and SigLIP-so400m in and out, against copying the same bytes.

    python benchmarks/convert_8b.py [--scratch=DIR] [--layers=N]

writes a decoder and a tower of these sizes (17 GB, bfloat16, seeded random numbers), imports and
exports them with `metamorph_jax.convert` in processes of their own, copies them to the disk before,
between and after (disks have moods), and prints rates as ratios, and each process's peak memory.
Parity: every
tensor that comes out is the one that went in, byte by byte. All files are deleted. A full run needs
60 GB of disk; `--layers` makes the decoder shorter.
"""

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from metamorph_jax.config.presets import llm_preset, vision_preset
from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.hub.configs import llm_config_json, vision_config_json
from metamorph_jax.hub.exporting import tensor_shapes
from metamorph_jax.hub.tensor_files import TensorFolder
from metamorph_jax.hub.tensor_writer import TensorToWrite, write_folder

BF16 = np.dtype(ml_dtypes.bfloat16)
TOKENIZER = Path(__file__).parents[1] / "tests" / "golden" / "llava" / "tokenizers" / "bpe_llama3"
MOST_MEMORY_GIB, LEAST_RATIO = 4.0, 0.5


def write_models(folder: Path, num_layers: int) -> int:
    """Writes both folders; returns their size in bytes."""
    model = ModelConfig(
        llm=llm_preset("llama31_8b", num_layers=num_layers),
        vision=vision_preset("siglip_so400m_14_384"),
    )
    configs = {
        "decoder": ("language_model", llm_config_json(model.llm)),
        "tower": ("vision_tower", vision_config_json(model.vision)),
    }
    rng = np.random.default_rng(0)
    numbers = (rng.standard_normal(2**26, np.float32) * 0.02).astype(BF16)

    def create(shape: tuple[int, ...], first: int) -> np.ndarray:
        return np.resize(numbers[first:], shape)

    total = 0
    for layout, (part, config) in configs.items():
        tensors = {
            name: TensorToWrite(
                shape, BF16, functools.partial(create, shape, int(rng.integers(2**25)))
            )
            for name, shape in tensor_shapes(model, part, layout).items()
        }
        (folder / layout).mkdir()
        write_folder(folder / layout, tensors)
        (folder / layout / "config.json").write_text(json.dumps(config))
        total += sum(tensor.num_bytes for tensor in tensors.values())
    for file in TOKENIZER.iterdir():
        shutil.copy(file, folder / "decoder")
    return total


def copy(source: Path, target: Path) -> float:
    """Copies two folders and forces them to the disk; returns the seconds."""
    start = time.perf_counter()
    for layout in ("decoder", "tower"):
        shutil.copytree(source / layout, target / layout)
        for file in (target / layout).iterdir():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    return time.perf_counter() - start


def timed_copy(scratch: Path, num_bytes: int) -> float:
    """Copies the models, prints and returns the seconds, and removes the copy."""
    secs = copy(scratch, scratch / "copy")
    shutil.rmtree(scratch / "copy")
    print(f"copy:   {num_bytes / secs / 1e9:6.3f} GB/s ({secs:.0f} s)", flush=True)
    return secs


def print_step(name: str, num_bytes: int, secs: float, memory: float, copy_secs: float) -> None:
    """Prints a conversion beside the copies before and after it, whose mean it is compared with."""
    print(
        f"{name}: {num_bytes / secs / 1e9:6.3f} GB/s ({secs:.0f} s), {copy_secs / secs:.2f}x the "
        f"copy (goal {LEAST_RATIO}x), peak {memory:.2f} GiB (goal {MOST_MEMORY_GIB:.0f})",
        flush=True,
    )


def convert(*arguments: str) -> tuple[float, float]:
    """Runs a conversion; returns its seconds and its peak resident memory in GiB."""
    command = [sys.executable, "-m", "metamorph_jax.convert", *arguments]
    start = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 2**20


def check_equal(folder: Path, exported: Path) -> int:
    """Compares every tensor that went in with the one that came out; returns how many."""
    out, count = TensorFolder(exported), 0
    prefixes = {
        "decoder": ("model.", "model.language_model."),
        "tower": ("", "model.vision_tower."),
    }
    for layout, (old, new) in prefixes.items():
        source = TensorFolder(folder / layout)
        for name in source.specs:
            renamed = new + name.removeprefix("vision_model.").removeprefix(old)
            renamed = renamed if name != "lm_head.weight" else name
            one, other = source.read(name), out.read(renamed)
            rows = len(one)  # two rows of new tokens are behind the old ones
            assert np.array_equal(one.view(np.uint16), other[:rows].view(np.uint16)), name
            count += 1
    return count


def main() -> None:
    """Prints the figures; fails if a tensor differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, default=Path("convert_8b_scratch"))
    parser.add_argument("--layers", type=int, default=32)
    flags = parser.parse_args()
    flags.scratch.mkdir(parents=True)
    try:
        num_bytes = write_models(flags.scratch, flags.layers)
        print(
            f"{num_bytes / 1e9:.2f} GB of bfloat16 in {flags.layers} layers and a tower", flush=True
        )
        run, out = flags.scratch / "run", flags.scratch / "out"
        decoder, tower = flags.scratch / "decoder", flags.scratch / "tower"
        before = timed_copy(flags.scratch, num_bytes)
        imported = ("hf-to-orbax", f"--llm={decoder}", f"--vision={tower}", f"--out={run}")
        secs, memory = convert(*imported)
        between = timed_copy(flags.scratch, num_bytes)
        print_step("import", num_bytes, secs, memory, (before + between) / 2)
        secs, memory = convert("orbax-to-hf", str(run), f"--out={out}")
        shutil.rmtree(run)  # there would not be room for another copy
        after = timed_copy(flags.scratch, num_bytes)
        print_step("export", num_bytes, secs, memory, (between + after) / 2)
        print(f"parity: {check_equal(flags.scratch, out)} tensors came out as they went in")
    finally:
        shutil.rmtree(flags.scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
