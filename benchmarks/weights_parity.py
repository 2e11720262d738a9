"""How far our models are from those of `transformers` with the same weights, family by family.

    python benchmarks/weights_parity.py

prints the table of docs/weights.md: the largest absolute difference over some of the random small
configurations of tests/parity (which runs all of them), float32 on CPU. At most two minutes.
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from timing import print_versions

from tests.data_files import small_tokenizer
from tests.parity import test_llama, test_llava, test_vision_towers
from tests.parity.torch_models import FAMILIES

NUM_CONFIGS = 4  # of each family
DECODERS = {
    "llama": "Llama 2, 3, 3.1; Vicuna",
    "llama_tied": "Llama 3.2 (tied head)",
    "mistral": "Mistral",
    "qwen2": "Qwen2, Qwen2.5",
}
TOWERS = {"siglip": "SigLIP; SigLIP 2 of fixed resolution", "clip": "CLIP, OpenCLIP"}
MODELS = {"clip+llama": "LLaVA-1.5", "siglip+qwen2": "LLaVA-Interleave"}


def main() -> None:
    """Prints the table."""
    print_versions("jax", "torch", "transformers")
    print("| family | states or features | logits | gradients |\n|---|---|---|---|")
    for number, name in enumerate(FAMILIES):
        seeds = range(number, number + NUM_CONFIGS * len(FAMILIES), len(FAMILIES))
        print_row(DECODERS[name], [test_llama.differences(seed) for seed in seeds])
    for family, title in TOWERS.items():
        seeds = range(NUM_CONFIGS)
        print_row(title, [test_vision_towers.differences(family, seed)[0] for seed in seeds])
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = small_tokenizer(Path(folder) / "tokenizer")
        for name, title in MODELS.items():
            model = test_llava.create_model(name, tokenizer)
            tensors = test_llava.checkpoint(model, "llava", Path(folder) / name)
            found = test_llava.differences(model, tensors, "llava", tokenizer)
            print_row(f"{title}, whole: 0, 1, 3 images", [{"logits": max(found.values())}])


def print_row(title: str, found: list[dict[str, float]]) -> None:
    """Prints the worst difference of each column; nothing where nothing was compared."""
    columns = (("layer", "features"), ("logits",), ("gradient",))
    worst = [
        max((v for one in found for k, v in one.items() if k.startswith(names)), default=None)
        for names in columns
    ]
    cells = " | ".join("" if value is None else f"{value:.1e}" for value in worst)
    print(f"| {title} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
