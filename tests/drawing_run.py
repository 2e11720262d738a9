"""A run whose model answers everything with a picture, and an untrained visualizer for it."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import torch

from metamorph_jax.checkpoints.store import CheckpointStore
from metamorph_jax.decoding.features import Encoder
from metamorph_jax.visualizer.checkpoint import TrainingState, save_checkpoint
from metamorph_jax.visualizer.model import Visualizer
from tests.data_files import small_tokenizer
from tests.scripted_model import VISUAL, scripted_config, scripted_params
from tests.tiny_run import tiny_config, write_tiny_run
from tests.visualizer_files import MODEL


def write_drawing_run(folder: Path) -> Path:
    """Writes a run whose model answers " cat<image>." to everything; returns its folder."""
    tokenizer = small_tokenizer(folder / "tokenizer")
    special = tokenizer.special
    (newline,), (cat,), (dot,) = (tokenizer.encode_text(text) for text in ("\n", " cat", "."))
    script = {newline: [cat], cat: [special.image_start], VISUAL: [special.image_end]}
    script |= {special.image_end: [dot], dot: [special.end_of_turn]}
    model = scripted_config(tokenizer.vocab_size, max_seq_len=64)
    config = dataclasses.replace(tiny_config(str(folder / "tokenizer")), model=model)
    write_tiny_run(folder, config)
    store = CheckpointStore(folder / "checkpoints")
    meta = store.read_meta()
    meta = dataclasses.replace(meta, step=meta.step + 1)
    params = jax.tree.map(jnp.asarray, scripted_params(model, script))
    store.save(meta.step, {"params": params}, meta)
    store.wait()
    return folder


def write_visualizer(folder: Path, run: Path) -> Path:
    """Writes an untrained visualizer of the run's encoder; returns its folder."""
    torch.manual_seed(0)
    model = Visualizer(dataclasses.replace(MODEL, token_dim=8))
    model.encoder_fingerprint = Encoder.load(run).fingerprint
    save_checkpoint(folder, model, TrainingState(1, {}, {}, ""), keep=2)
    return folder
