"""A run folder with a tiny, untrained checkpoint, as training would leave it."""

import json
from pathlib import Path

import jax

from metamorph_jax.checkpoints.metadata import CheckpointMeta
from metamorph_jax.checkpoints.store import CheckpointStore
from metamorph_jax.config.loading import from_dict, to_dict, to_text
from metamorph_jax.config.presets import llm_preset, vision_preset
from metamorph_jax.config.schema_run import RunConfig
from metamorph_jax.models.init import init_params

VOCAB_SIZE = 512


def tiny_config(tokenizer: str = "tokenizer", **model) -> RunConfig:
    """Returns a recipe of the digits' shapes, but narrow and with one layer."""
    llm = {"vocab_size": VOCAB_SIZE, "num_layers": 1, "embed_dim": 32, "mlp_dim": 32}
    llm |= {"num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "scan_unroll": 1}
    vision = {"num_layers": 1, "embed_dim": 24, "num_heads": 2, "mlp_dim": 24, "scan_unroll": 1}
    return from_dict(
        {
            "name": "tiny",
            "tokenizer": {"path": tokenizer},
            "model": {
                "llm": to_dict(llm_preset("digits", **llm)),
                "vision": to_dict(vision_preset("digits", **vision)),
                "visual_tokens": {"num_tokens": 4},
                **model,
            },
            "stages": [
                {
                    "name": "vpit",
                    "trained": ["language_model"],
                    "data": {"sources": [{"path": "train.jsonl"}]},
                    "optimizer": {"learning_rate": 1e-3},
                    "total_steps": 3,
                    "global_batch_size": 2,
                }
            ],
        }
    )


def write_tiny_run(folder: Path, config: RunConfig, seed: int = 0) -> dict:
    """Writes `folder` with a checkpoint of fresh parameters, and returns these."""
    params = init_params(config.model, jax.random.key(seed))
    stage = config.stages[-1]
    meta = CheckpointMeta(
        step=stage.total_steps,
        stage=stage.name,
        stage_step=stage.total_steps,
        stage_total_steps=stage.total_steps,
        data_fingerprint="none",
        seed=config.seed,
        recipe=json.dumps(to_dict(config)),
        model_fingerprint="none",
        versions={"jax": jax.__version__},
    )
    store = CheckpointStore(folder / "checkpoints")
    store.save(meta.step, {"params": params}, meta)
    store.wait()
    (folder / "recipe.txt").write_text(to_text(config) + "\n")
    return params
