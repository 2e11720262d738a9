"""LLaVA-1.5 13B: CLIP, a two-layer projector, Vicuna-13B-v1.5.

Paper:    Improved Baselines with Visual Instruction Tuning, arXiv 2310.03744.
Data:     data/blip_laion_cc_sbu_558k.json, then data/llava_v1_5_mix665k.json, images under data/.
Run:      python -m metamorph_jax.train --config=configs/llava15_13b.py:h100,projector
          python -m metamorph_jax.train --config=configs/llava15_13b.py:h100
Check:    python -m metamorph_jax.train --config=configs/llava15_13b.py:h100 --dry_run
Hardware: h100 or h200 (8 GPUs), v4 4x4x4, v5e 8x8, v5p 4x4x4, v6e 8x8 (64 chips each).
Expect:   The paper's runs took 5.5 h and 20 h on 8 A100 (LLaVA's README).
Planned:  GiB a device and the least hours of `instruct`: v5e 8.6, 2.1 h (compiled);
          h100 44.9, 3.4 h
          (by arithmetic, without gaps). Runs take 1.1 to 1.8 times as long (docs/scaling.md).

`:h100,unpacked` is the paper's own arithmetic: one sample a row.
"""

from configs.pieces.llava15 import make_config


def get_config(arg=""):
    return make_config(
        "llava15_13b",
        arg,
        preset="llama2_13b",
        decoder="models/vicuna-13b-v1.5",
    )
