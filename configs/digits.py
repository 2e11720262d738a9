"""VPiT on scikit-learn's scanned digits: the whole road on two CPU cores in minutes.

Paper:    MetaMorph, arXiv 2412.14164; the tiny sizes are ours.
Data:     python -m metamorph_jax.data.digits --out=data/digits (another DIR: digits.py:DIR)
Run:      python -m metamorph_jax.train --config=configs/digits.py
Expect:   "Which digit is this?" >= 95 %, pictures recognised >= 95 % (`make demo` shows them).
"""

from ml_collections import ConfigDict

from metamorph_jax.config.presets import llm_preset, vision_preset


def get_config(data="data/digits"):
    config = ConfigDict()
    config.name = "digits"
    config.tokenizer = {"path": f"{data}/tokenizer"}
    config.model = {
        "llm": llm_preset("digits"),
        "vision": vision_preset("digits"),
        "visual_tokens": {"reduction": "interpolation", "num_tokens": 16},
        "contrastive_dim": 64,  # only because this run trains its own tower
    }
    config.stages = [encoder(data), adapter(data), vpit(data)]
    config.checkpoint = {"interval_steps": 100}
    return config


def encoder(data):
    """Stands in for the pretrained SigLIP: images against captions, plus their pixels."""
    return {
        "name": "encoder",
        "objective": "contrastive",
        "trained": ["vision_tower", "contrastive"],
        "data": sources(data, captions=1.0) | {"max_seq_len": 8},
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.05},
        "loss": {"reconstruction_weight": 10.0},
        "total_steps": 600,
        "global_batch_size": 64,
        "shift_pixels": 2,
    }


def adapter(data):
    """Stage 1 of the paper: projector and the two new token rows; no visual loss."""
    return {
        "name": "adapter",
        "trained": ["connector"],
        "train_new_token_rows": True,
        "data": sources(data, understanding=1.0),
        "optimizer": {"learning_rate": 1e-3},
        "loss": {"visual_weight": 0.0},
        "total_steps": 20,
        "global_batch_size": 8,
    }


def vpit(data):
    """Stage 2 of the paper: everything but the tower; half of the examples ask for pictures."""
    return {
        "name": "vpit",
        "trained": ["connector", "language_model", "vision_head"],
        "data": sources(data, understanding=0.8, generation=2.0, edits=0.8),
        "optimizer": {"learning_rate": 2e-3, "b2": 0.95},  # so short a run learns less at 0.999
        "total_steps": 600,
        "global_batch_size": 8,
    }


def sources(data, **weights):
    """Rows of eight or so examples; a weight of 2 shows a file twice an epoch."""
    return {
        "sources": [
            {"path": f"{data}/{name}.jsonl", "image_root": data, "weight": weight}
            for name, weight in weights.items()
        ],
        "max_seq_len": 256,
        "max_images": 8,
    }
