import math

import numpy as np
import pytest

from metamorph_jax.ops.activations import ACTIVATIONS
from tests import tolerances

X = np.array([-2.0, -0.5, 0.0, 1.0, 3.0], np.float32)
ERF = np.array([math.erf(x / 2**0.5) for x in X])
FORMULAS = {
    "silu": X / (1 + np.exp(-X)),
    "gelu": 0.5 * X * (1 + ERF),
    "gelu_tanh": 0.5 * X * (1 + np.tanh((2 / np.pi) ** 0.5 * (X + 0.044715 * X**3))),
    "quick_gelu": X / (1 + np.exp(-1.702 * X)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_formulas(name):
    ours = ACTIVATIONS[name](X)
    np.testing.assert_allclose(ours, FORMULAS[name], rtol=0, atol=tolerances.FLOAT32_REORDERED)


def test_exact_and_tanh_form_differ():
    ours = [float(ACTIVATIONS[name](np.float32(1.0))) for name in ("gelu", "gelu_tanh")]
    expected = [0.841345, 0.841192]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerances.FLOAT32_REORDERED)
