"""What the parity tests share: random weights for torch models."""

import torch


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
