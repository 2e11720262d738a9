"""VPiT on a world of coloured shapes: all six kinds of MetaMorph's samples in one run.

Paper:    MetaMorph, arXiv 2412.14164; the tiny sizes and the world (docs/shapes.md) are ours.
Data:     made while it is read; `python -m metamorph_jax.data.shapes --out=data/shapes` writes the
          tokenizer (another DIR: shapes.py:DIR).
Run:      python -m metamorph_jax.train --config=configs/shapes.py
Hardware: 2 CPU cores, at most 15 minutes.
"""

from ml_collections import ConfigDict

from metamorph_jax.config.presets import llm_preset, vision_preset

# Records of each kind; an epoch shows each once.
COUNTS = {
    "image_qa": 10_000,
    "video_qa": 4_000,
    "text_to_image": 10_000,
    "pure_video": 4_000,
    "visual_thinking": 5_000,
    "image_to_image": 8_000,
}


def get_config(data="data/shapes"):
    config = ConfigDict()
    config.name = "shapes"
    config.tokenizer = {"path": f"{data}/tokenizer"}
    config.model = {
        "llm": llm_preset("digits", vocab_size=832),
        "vision": vision_preset("digits", patch_size=8),  # a patch per visual token
        "visual_tokens": {"reduction": "interpolation", "num_tokens": 16},
        "contrastive_dim": 64,  # only because this run trains its own tower
    }
    config.stages = [encoder(), adapter(), vpit()]
    config.checkpoint = {"interval_steps": 500}
    return config


def encoder():
    """Stands in for the pretrained SigLIP: images against captions, plus their pixels.

    The way back to pixels is linear, and later paints what the language model imagines.
    """
    return {
        "name": "encoder",
        "objective": "contrastive",
        "trained": ["vision_tower", "contrastive"],
        "data": {"sources": [{"path": "shapes:captions/train?count=15000"}], "max_seq_len": 32},
        "optimizer": {
            "learning_rate": 3e-3,
            "weight_decay": 0.01,
            "multipliers": {
                "contrastive/pixel_head": 30.0,  # tokens have length 1, pixels do not
                "vision_tower/position_embed": 10.0,  # so that tokens tell where they are
            },
        },
        "loss": {"reconstruction_weight": 50.0},
        "total_steps": 1200,
        "global_batch_size": 64,
        "shift_pixels": 2,
    }


def adapter():
    """Stage 1 of the paper: projector and the two new token rows; no visual loss."""
    return {
        "name": "adapter",
        "trained": ["connector"],
        "train_new_token_rows": True,
        "data": mixture({"image_qa": COUNTS["image_qa"]}),
        "optimizer": {"learning_rate": 1e-2},
        "loss": {"visual_weight": 0.0},
        "total_steps": 40,
        "global_batch_size": 8,
    }


def vpit():
    """Stage 2 of the paper: everything but the tower, on all six kinds."""
    return {
        "name": "vpit",
        "trained": ["connector", "language_model", "vision_head"],
        "data": mixture(COUNTS),
        # Visual tokens have length 1, so what reads them starts small.
        "optimizer": {
            "learning_rate": 2e-3,
            "multipliers": {"connector": 10.0, "vision_head": 3.0},
        },
        "total_steps": 4500,
        "global_batch_size": 4,
    }


def mixture(counts):
    """Rows of five or so samples; each kind is a source."""
    return {
        "sources": [
            {"path": f"shapes:{kind}/train?count={count}", "kind": kind}
            for kind, count in counts.items()
        ],
        "max_seq_len": 288,
        "max_images": 12,
    }
