"""The visualizer of the digits demo: a small U-Net that paints scans from 16 visual tokens.

Paper:    MetaMorph, arXiv 2412.14164, appendix; the paper tunes Stable Diffusion 1.5. Here the
          diffusion runs at the scans' native 8x8 and predicts velocity (docs/digits.md says why).
Data:     features of the run's own encoder, and the training scans.
Run:      python -m metamorph_jax.visualizer.train --config=configs/visualizer_digits.py \
              --features=FILE --image_root=data/digits --out=runs/visualizer_digits
Hardware: 2 CPU cores, about a minute.
Expect:   pictures painted from held-out tokens recognised by an SVM >= 97 %.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.name = "visualizer_digits"
    config.model = {
        "num_tokens": 16,
        "token_dim": 96,
        "context_dim": 64,
        "context_len": 16,
        "projector": {"mode": "mlp", "hidden_dim": 128, "num_layers": 2, "use_positions": True},
        "unet": {
            "channels": [32, 64],
            "cross_attention": [False, True],  # at 4x4, one position per visual token
            "layers_per_block": 1,
            "num_heads": 2,
            "norm_groups": 16,
        },
        "latents": {"kind": "pixels", "size": 8, "channels": 1, "picture_size": 32},
        "diffusion": {"prediction_type": "v_prediction"},
    }
    config.training = {
        "total_steps": 1200,
        "batch_size": 32,
        "learning_rate": 3e-3,
        "schedule": "cosine",
        "warmup_steps": 20,
        "condition_drop": 0.1,
    }
    config.checkpoint = {"interval_steps": 300}
    return config
