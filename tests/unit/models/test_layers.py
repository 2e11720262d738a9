import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen as nn

from metamorph_jax.models.layers import (
    Embed,
    LayerNorm,
    Linear,
    RMSNorm,
    fan_in_normal,
    fixed_normal,
    torch_uniform,
    zeros,
)
from tests import tolerances

F32, BF16 = jnp.dtype("float32"), jnp.dtype("bfloat16")


def init(module, *args):
    return module.init(jax.random.key(0), *args)["params"]


def test_linear_contracts_and_names_its_dimensions():
    layer = Linear(
        "...D,DNH->...NH", (6, 2, 3), ("embed", "heads", "head_dim"), F32, F32, bias_init=zeros
    )
    x = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    boxed = init(layer, x)
    assert boxed["kernel"].names == ("embed", "heads", "head_dim")
    assert boxed["bias"].names == ("heads", "head_dim")
    params = nn.unbox(boxed)
    params["bias"] = np.arange(6, dtype=np.float32).reshape(2, 3)
    y = layer.apply({"params": params}, x)
    expected = np.einsum("btd,dnh->btnh", x, params["kernel"]) + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerances.FLOAT32_REORDERED)


def test_linear_contracts_two_dimensions():
    layer = Linear("...NH,NHD->...D", (2, 3, 6), ("heads", "head_dim", "embed"), F32, F32)
    x = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    params = nn.unbox(init(layer, x))
    expected = np.einsum("bnh,nhd->bd", x, params["kernel"])
    np.testing.assert_allclose(
        layer.apply({"params": params}, x), expected, rtol=0, atol=tolerances.FLOAT32_REORDERED
    )


def test_linear_computes_in_dtype_and_holds_param_dtype():
    layer = Linear("...C,CD->...D", (8, 4), ("embed", "mlp"), BF16, F32)
    params = nn.unbox(init(layer, jnp.ones((2, 8))))
    assert params["kernel"].dtype == F32
    assert layer.apply({"params": params}, jnp.ones((2, 8))).dtype == BF16
    finer = Linear("...C,CD->...D", (8, 4), ("embed", "mlp"), BF16, F32, result_dtype=F32)
    assert finer.apply({"params": params}, jnp.ones((2, 8))).dtype == F32


def test_initial_spread():
    shape, samples = (64, 32, 16), 64 * 32 * 16

    def kernel(equation, init_rule):
        layer = Linear(equation, shape, ("a", "b", "c"), F32, F32, kernel_init=init_rule)
        letters = equation.split(",")[0][3:]
        x = jnp.ones({"D": (64,), "DN": (64, 32)}[letters])
        return np.asarray(nn.unbox(init(layer, x))["kernel"])

    one, two = "...D,DNH->...NH", "...DN,DNH->...H"
    relative = 4 * samples**-0.5  # four standard errors of a standard deviation
    np.testing.assert_allclose(kernel(one, fan_in_normal()).std(), 64**-0.5, rtol=relative)
    np.testing.assert_allclose(
        kernel(two, fan_in_normal(0.5)).std(), 0.5 / 2048**0.5, rtol=relative
    )
    np.testing.assert_allclose(kernel(one, fixed_normal(0.02)).std(), 0.02, rtol=relative)
    uniform = kernel(one, torch_uniform)
    assert np.abs(uniform).max() <= 64**-0.5
    np.testing.assert_allclose(uniform.std(), (3 * 64) ** -0.5, rtol=relative)


def test_embed_looks_up_and_flags_ids_past_the_end():
    layer = Embed((5, 3), ("vocab", "embed"), F32, F32, stddev=1.0)
    params = nn.unbox(init(layer, jnp.zeros((1, 1), jnp.int32)))
    out = np.asarray(layer.apply({"params": params}, jnp.array([[4, 0], [7, 1]])))
    np.testing.assert_array_equal(out[0, 0], params["embedding"][4])
    assert np.isnan(out[1, 0]).all()
    assert np.isfinite(out[1, 1]).all()


def test_norms_equal_torch():
    x = np.random.default_rng(0).normal(3.0, 2.0, size=(4, 5, 6)).astype(np.float32)
    scale, bias = np.random.default_rng(1).normal(size=(2, 6)).astype(np.float32)
    theirs = torch.nn.functional.layer_norm(
        *(torch.tensor(a) for a in (x,)), (6,), torch.tensor(scale), torch.tensor(bias), 1e-3
    )
    ours = LayerNorm(1e-3, "embed", F32, F32).apply({"params": {"scale": scale, "bias": bias}}, x)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerances.FLOAT32_REORDERED)
    theirs = torch.nn.functional.rms_norm(torch.tensor(x), (6,), torch.tensor(scale), 1e-3)
    ours = RMSNorm(1e-3, "embed", F32, F32).apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerances.FLOAT32_REORDERED)


def test_norms_compute_in_float32():
    # In bfloat16 the mean of squares of 1000 equal numbers would be off by far more.
    x = jnp.full((1, 1000), 3.0, BF16)
    y = RMSNorm(1e-6, "embed", BF16, F32).apply({"params": {"scale": jnp.ones(1000)}}, x)
    assert y.dtype == BF16
    np.testing.assert_array_equal(np.asarray(y, np.float32), 1.0)
