"""LLaVA-1.5 7B: CLIP, a two-layer projector, Vicuna-7B-v1.5.

Paper:    Improved Baselines with Visual Instruction Tuning, arXiv 2310.03744.
Data:     data/blip_laion_cc_sbu_558k.json, then data/llava_v1_5_mix665k.json, images under data/.
Run:      python -m metamorph_jax.train --config=configs/llava15_7b.py:h100,projector
          python -m metamorph_jax.train --config=configs/llava15_7b.py:h100
Check:    python -m metamorph_jax.train --config=configs/llava15_7b.py:h100 --dry_run
Hardware: h100 or h200 (8 GPUs), v4 4x4x4, v5e 8x8, v5p 4x4x4, v6e 8x8 (64 chips each).
Expect:   The paper's runs took 3.5 h and 10 h on 8 A100 (LLaVA's README).
Planned:  GiB a device and the least hours of `instruct`: v5e 5.4, 1.1 h (compiled);
          h100 25.8, 1.8 h
          (by arithmetic, without gaps). Runs take 1.1 to 1.8 times as long (docs/scaling.md).

`:h100,unpacked` is the paper's own arithmetic: one sample a row.
"""

from configs.pieces.llava15 import make_config


def get_config(arg=""):
    return make_config(
        "llava15_7b",
        arg,
        preset="llama2_7b",
        decoder="models/vicuna-7b-v1.5",
    )
