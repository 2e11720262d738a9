"""MetaMorph's visualizer: Stable Diffusion 1.5 learns to paint SigLIP tokens at 512 pixels.

Paper:    MetaMorph, arXiv 2412.14164, appendix. `paper`: 2,112 pictures a step, log warm-up of
          2,000 steps to 1.1e-5, then 12,000 steps down to 0, 70 % without condition.
          `released_code`: 192 pictures, 4,000 steps to 1e-5, a line to 0 at 16,000, of which it
          made about 12,000 (--max_steps=12000), 80 % without condition.
Data:     pictures without captions (MetaCLIP's in the paper); an exported MetaMorph or a features
          file of its tower; Stable Diffusion 1.5 in diffusers' layout.
Run:      accelerate launch --num_processes=8 -m metamorph_jax.visualizer.train \
              --config=configs/visualizer_sd15.py:paper --encoder=models/metamorph-8b \
              --image_root=data/pictures --latents=data/latents --out=runs/visualizer_sd15
Hardware: 8 GPUs of 80 GB; on others --config.training.grad_accum_steps=N, so that
          2,112 / (GPUs x N) pictures fit one GPU. docs/visualizer.md says what it costs.
Expect:   no figure of ours yet; the paper shows pictures only.
"""

from ml_collections import ConfigDict

from metamorph_jax.errors import UserError

_TRAINING = {
    "paper": {
        "total_steps": 14_000,
        "batch_size": 2112,  # 24 on each of 88 GPUs
        "grad_accum_steps": 11,  # 24 on each of 8 GPUs
        "learning_rate": 1.1e-5,
        "warmup_steps": 2000,
        "condition_drop": 0.7,
    },
    "released_code": {
        "total_steps": 16_000,
        "batch_size": 192,
        "learning_rate": 1e-5,
        "warmup_steps": 4000,
        "condition_drop": 0.8,
    },
}


def get_config(arg="paper"):
    if arg not in _TRAINING:
        raise UserError(f"configs/visualizer_sd15.py:{arg}: expected {' or '.join(_TRAINING)}")
    config = ConfigDict()
    config.name = f"visualizer_sd15_{arg}"
    config.seed = 42
    config.stable_diffusion = "models/stable-diffusion-v1-5"
    config.model = {
        "num_tokens": 64,
        "token_dim": 1152,
        "context_dim": 768,
        "context_len": 77,
        "projector": {"mode": "mlp", "hidden_dim": 2048, "num_layers": 2},
        "latents": {"kind": "vae", "size": 64, "channels": 4, "picture_size": 512},
        "diffusion": {
            "prediction_type": "epsilon",
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
        },
        "view": "squash",  # as released; "same_crop" shows the encoder no more than is painted
    }
    config.training = _TRAINING[arg] | {
        "schedule": "log_warmup_linear",
        "max_grad_norm": None,  # neither paper nor code is known to clip
        "mixed_precision": "bf16",  # the released code computes in float32
    }
    config.data = {"num_workers": 8}
    config.checkpoint = {"interval_steps": 500}
    return config
