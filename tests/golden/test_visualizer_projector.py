"""Golden case F: the visualizer's projectors with their gradients, and its learning rates."""

import numpy as np
import pytest
import torch

from metamorph_jax.visualizer.projector import create_projector
from metamorph_jax.visualizer.schedule import linear_warmup_constant, log_warmup_linear
from metamorph_jax.visualizer.schema import ProjectorConfig
from tests import tolerances
from tests.golden_data import load_case

pytestmark = pytest.mark.golden
KINDS = ("mlp2", "mlp3", "xattn", "xattnffn")


def part(tensors, prefix):
    return {
        name.removeprefix(prefix): torch.from_numpy(value)
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def loaded(kind):
    """Returns (projector with the golden weights, JSON entry, tensors of this kind)."""
    fields, tensors = load_case("F_visualizer_projector")
    entry = fields["projectors"][kind]
    settings = dict(entry["config"])
    widths = settings.pop("input_dim"), settings.pop("output_dim")
    if "queries" in settings:
        settings["num_queries"] = settings.pop("queries")
    projector = create_projector(*widths, ProjectorConfig(**settings))
    own = part(tensors, f"{kind}/") | {"features": torch.from_numpy(tensors["inputs/features"])}
    projector.load_state_dict(
        {n.removeprefix("weights/"): v for n, v in own.items() if n.startswith("weights/")}
    )
    return projector, entry, own


@pytest.mark.parametrize("kind", KINDS)
def test_output_and_size(kind):
    projector, entry, own = loaded(kind)
    output = projector(own["features"])
    assert list(output.shape) == entry["output_shape"]
    assert sum(value.numel() for value in projector.parameters()) == entry["n_parameters"]
    difference = (output - own["outputs/output"]).abs().max().item()
    assert difference <= tolerances.GOLDEN


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    projector, _, own = loaded(kind)
    features = own["features"].requires_grad_()
    (projector(features) * own["inputs/cotangent"]).sum().backward()
    found = {name: value.grad for name, value in projector.named_parameters()}
    found["input"] = features.grad
    wanted = {n.removeprefix("grads/"): v for n, v in own.items() if n.startswith("grads/")}
    assert found.keys() == wanted.keys()
    # The key bias of an attention has no influence on it; its gradient is rounding noise inside
    # in_proj_bias, beside the query's and value's, so relative errors are per tensor.
    errors = {
        name: ((found[name] - value).norm() / value.norm()).item() for name, value in wanted.items()
    }
    assert max(errors.values()) <= tolerances.GOLDEN_GRADIENT, errors


@pytest.mark.parametrize(
    ("case", "schedule"),
    [
        ("visualizer", log_warmup_linear),
        ("visualizer_unet_from_scratch", linear_warmup_constant),
    ],
)
def test_learning_rate_multipliers(case, schedule):
    fields, _ = load_case("F_visualizer_projector")
    table = fields["lr_schedules"][case]
    found = [schedule(step) for step in table["steps"]]
    np.testing.assert_allclose(
        found, table["multiplier"], rtol=0, atol=tolerances.LEARNING_RATE_MULTIPLIER
    )
