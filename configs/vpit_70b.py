"""MetaMorph 70B: the recipe of vpit_8b.py with Llama-3-70B-Instruct, as in the paper's table 7.

Paper:    MetaMorph, arXiv 2412.14164, table 7. It does not say with which batch the 70B model was
          trained; here it is that of the 8B model, with the rates of the same rule.
Data:     as for vpit_8b.py.
Run:      python -m metamorph_jax.train --config=configs/vpit_70b.py:v5p
Check:    python -m metamorph_jax.train --config=configs/vpit_70b.py:v5p --dry_run
Hardware: v4 or v5p 8x8x8 (512 chips), v5e or v6e 16x16 (256 chips), h100 or h200 (8 nodes of 8).
          On pods, several chips share a row (`context`), so that 192 rows are enough for all.
Planned:  GiB a device and the least hours of the second stage: v5p 29.0, 5.1 h (compiled); h100 and
          h200 52.0, 24.3 h (by arithmetic, without gaps), bound by the network between nodes. Runs
          take 1.1 to 1.8 times as long (docs/scaling.md); docs/memory.md has the others.
"""

from ml_collections import ConfigDict

from configs.pieces.hardware import device, put_on, words
from configs.pieces.models import metamorph_70b
from configs.pieces.stages import adapter, vpit

NUM_ROWS = {"packed": (64, 192), "unpacked": (768, 1536)}  # of the two stages
CUBE, SQUARE, NODES = {"fsdp": 64, "context": 8}, {"fsdp": 16, "context": 16}, {"fsdp": 64}
# Each plane of the cube has all parameters: groups that leave an axis of the torus out gather and
# scatter natively (docs/scaling.md).
PLANES = {"data": 8, "fsdp": 8, "context": 8}
HARDWARE = {
    "v5p": device(PLANES, 6, attention="splash", remat="attention"),
    "v4": device(CUBE, 3, attention="splash", remat="attention", vocab_chunk_size=8192),
    "v5e": device(SQUARE, 4, attention="splash", vocab_chunk_size=4096),
    "v6e": device(SQUARE, 12, attention="splash", remat="attention", vocab_chunk_size=8192),
    "h100": device(NODES, 3, vocab_chunk_size=8192),
    "h200": device(NODES, 3, vocab_chunk_size=8192),
}


def get_config(arg=""):
    hardware, variant = words(arg, "configs/vpit_70b.py", hardware=HARDWARE, rows=NUM_ROWS)
    adapter_rows, vpit_rows = NUM_ROWS[variant]
    config = ConfigDict()
    config.name = f"vpit_70b_{variant}"
    config.seed = 42
    config.tokenizer = {"path": "models/Meta-Llama-3-70B-Instruct"}
    config.model = metamorph_70b()
    config.stages = [
        adapter(["data/cambrian_adapter.jsonl"], num_rows=adapter_rows, total_steps=1600),
        vpit(["data/vpit_16m.jsonl"], num_rows=vpit_rows, total_steps=10460),
    ]
    for stage in config.stages:
        stage["data"]["packing"] = variant == "packed"
    put_on(config, HARDWARE[hardware])
    return config
