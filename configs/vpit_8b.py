"""MetaMorph 8B: Llama-3.1-8B-Instruct learns to predict SigLIP tokens, in the paper's two stages.

Paper:    MetaMorph, arXiv 2412.14164, tables 1 and 2: 1,536 samples a step at 6.93e-5, 768 at
          4.90e-5 for the adapter; other batches by its square-root rule.
Data:     LLaVA JSONL under data/: Cambrian's adapter captions, then the paper's 16 M-sample mix.
Run:      python -m metamorph_jax.train --config=configs/vpit_8b.py:v5p
Check:    python -m metamorph_jax.train --config=configs/vpit_8b.py:v5p --dry_run
Hardware: v4 4x4x4, v5e 8x8, v5p 4x4x4, v6e 8x8 (64 chips each), h100 or h200 (8 GPUs); without a
          word, 64 accelerators of 80 GB.
Expect:   cosine 0.7 to 0.8 at the end of the second stage.
Planned:  GiB a device and the least hours of the second stage: v5e 9.6, 12.2 h; v5p 21.6, 5.1 h;
          v6e 27.8, 2.6 h (compiled); h100 28.7, 19.4 h; h200 36.6, 19.4 h (by arithmetic, without
          gaps). Runs take 1.1 to 1.8 times as long (docs/scaling.md).

Rows of 4,096 tokens hold several samples; 192 rows are about 1,536 samples if eight share one.
`--config=configs/vpit_8b.py:v5p,unpacked` is the paper's own arithmetic: one sample a row.
"""

from ml_collections import ConfigDict

from configs.pieces.hardware import device, put_on, words
from configs.pieces.models import metamorph_8b
from configs.pieces.stages import adapter, vpit

NUM_ROWS = {"packed": (64, 192), "unpacked": (768, 1536)}  # of the two stages
POD = {"fsdp": 64}
HARDWARE = {
    "any": device(POD, 6),
    "v4": device(POD, 3, attention="splash", remat="attention"),
    "v5e": device(POD, 3, attention="splash", vocab_chunk_size=4096),
    # Groups that leave an axis of the torus out gather and scatter natively (docs/scaling.md).
    "v5p": device({"data": 4, "fsdp": 16}, 6, attention="splash", remat="attention"),
    "v6e": device({"data": 8, "fsdp": 8}, 3, attention="splash"),
    "h100": device({"fsdp": 8}, 2, vocab_chunk_size=8192),
    "h200": device({"fsdp": 8}, 4),
}


def get_config(arg=""):
    hardware, variant = words(arg, "configs/vpit_8b.py", hardware=HARDWARE, rows=NUM_ROWS)
    adapter_rows, vpit_rows = NUM_ROWS[variant]
    config = ConfigDict()
    config.name = f"vpit_8b_{variant}"
    config.seed = 42
    config.tokenizer = {"path": "models/Llama-3.1-8B-Instruct"}
    config.model = metamorph_8b()
    config.stages = [
        adapter(["data/cambrian_adapter.jsonl"], num_rows=adapter_rows, total_steps=1600),
        vpit(["data/vpit_16m.jsonl"], num_rows=vpit_rows, total_steps=10460),
    ]
    for stage in config.stages:
        stage["data"]["packing"] = variant == "packed"
    put_on(config, HARDWARE[hardware])
    return config
