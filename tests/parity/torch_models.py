"""What the parity tests share: decoders by family, random weights for torch models, differences."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import transformers

torch.set_num_threads(1)  # for models this small, more would only wait for each other


class Family(NamedTuple):
    """A kind of decoder in transformers.

    Attributes:
        config: its configuration's class.
        model: its model's class.
        window: generator -> keys of the configuration about a sliding window.
    """

    config: type
    model: type
    window: Callable[[np.random.Generator], dict]


def _mistral_window(rng: np.random.Generator) -> dict:
    return {"sliding_window": [None, 64][int(rng.integers(2))]}


def _qwen2_window(rng: np.random.Generator) -> dict:
    """Returns no window, one in all layers, or one from the second layer on."""
    choice = int(rng.integers(3))
    window = {"use_sliding_window": choice > 0, "sliding_window": 64}
    return window | {"max_window_layers": choice // 2}


_LLAMA = Family(transformers.LlamaConfig, transformers.LlamaForCausalLM, lambda rng: {})
FAMILIES = {
    "llama": _LLAMA,
    "llama_tied": _LLAMA,
    "mistral": Family(transformers.MistralConfig, transformers.MistralForCausalLM, _mistral_window),
    "qwen2": Family(transformers.Qwen2Config, transformers.Qwen2ForCausalLM, _qwen2_window),
}


def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Returns the model with weights that keep values of order 1, and norms and biases that matter.

    The usual initialisation (0.02, biases zero, norms one) would hide a missing bias or scale.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                is_scale = "norm" in name and name.endswith("weight")
                parameter.copy_(0.1 * noise + float(is_scale))
    return model.eval()


def largest_differences(pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Returns the largest absolute difference within each pair of arrays of one shape."""
    found = {}
    for name, (ours, theirs) in pairs.items():
        assert np.shape(ours) == np.shape(theirs), name
        found[name] = float(np.abs(np.asarray(ours) - np.asarray(theirs)).max())
    return found
