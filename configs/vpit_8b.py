"""MetaMorph 8B: Llama-3.1-8B-Instruct learns to predict SigLIP tokens, in the paper's two stages.

Paper:    MetaMorph, arXiv 2412.14164, tables 1 and 2: 1,536 samples a step at 6.93e-5, 768 at
          4.90e-5 for the adapter; other batches by its square-root rule.
Data:     LLaVA JSONL under data/: Cambrian's adapter captions, then the paper's 16 M-sample mix.
Run:      python -m metamorph_jax.train --config=configs/vpit_8b.py
Check:    python -m metamorph_jax.train --config=configs/vpit_8b.py --dry_run
Hardware: 64 accelerators of 80 GB; `--config.mesh.fsdp=N` for others.
Expect:   cosine 0.7 to 0.8 at the end of the second stage.

Rows of 4,096 tokens hold several samples; 192 rows are about 1,536 samples if eight share one.
`--config=configs/vpit_8b.py:unpacked` is the paper's own arithmetic: one sample a row.
"""

from ml_collections import ConfigDict

from configs.pieces.models import metamorph_8b
from configs.pieces.stages import adapter, vpit
from metamorph_jax.errors import UserError

NUM_ROWS = {"packed": (64, 192), "unpacked": (768, 1536)}  # of the two stages
GRAD_ACCUM_STEPS = {"packed": (1, 1), "unpacked": (3, 4)}  # so that a micro-batch fits 80 GB


def get_config(arg="packed"):
    if arg not in NUM_ROWS:
        raise UserError(f"configs/vpit_8b.py:{arg}: expected one of {', '.join(NUM_ROWS)}")
    adapter_rows, vpit_rows = NUM_ROWS[arg]
    config = ConfigDict()
    config.name = f"vpit_8b_{arg}"
    config.seed = 42
    config.tokenizer = {"path": "models/Llama-3.1-8B-Instruct"}
    config.model = metamorph_8b()
    config.stages = [
        adapter(["data/cambrian_adapter.jsonl"], num_rows=adapter_rows, total_steps=1600),
        vpit(["data/vpit_16m.jsonl"], num_rows=vpit_rows, total_steps=10460),
    ]
    for stage, grad_accum_steps in zip(config.stages, GRAD_ACCUM_STEPS[arg], strict=True):
        stage["data"]["packing"] = arg == "packed"
        stage["grad_accum_steps"] = grad_accum_steps
    config.mesh = {"data": 1, "fsdp": 64, "tensor": 1}
    return config
