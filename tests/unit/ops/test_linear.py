import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metamorph_jax.ops.linear import linear
from tests import tolerances

# Shapes of x and of the kernel, and how many dimensions are summed.
CASES = [((2, 7, 6), (6, 5), 1), ((2, 7, 6), (6, 3, 4), 1), ((2, 7, 3, 4), (3, 4, 5), 2)]
CASES += [((6,), (6, 5), 1), ((2, 3, 7, 6), (6, 5), 1)]


def gradients(function, x, kernel, num_summed):
    def total(x, kernel):
        y = function(x, kernel, num_summed)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape)).astype(y.dtype))

    return jax.value_and_grad(total, (0, 1))(x, kernel)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("x_shape,kernel_shape,num_summed", CASES)
def test_values_and_gradients_equal_those_of_tensordot(x_shape, kernel_shape, num_summed, dtype):
    rng = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(rng.normal(size=shape) / 4, dtype) for shape in (x_shape, kernel_shape)
    )
    ours = gradients(linear, x, kernel, num_summed)
    expected = gradients(jnp.tensordot, x, kernel, num_summed)
    tolerance = {"float32": tolerances.FLOAT32_REORDERED, "bfloat16": tolerances.BFLOAT16}[dtype]
    for ours_leaf, leaf in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert (ours_leaf.shape, ours_leaf.dtype) == (leaf.shape, leaf.dtype)
        np.testing.assert_allclose(
            *(np.asarray(a, np.float32) for a in (ours_leaf, leaf)), atol=tolerance, rtol=tolerance
        )


def test_the_gradient_of_the_kernel_is_not_transposed():
    def transposes(function):
        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 7, 6), (6, 5))]
        return str(jax.make_jaxpr(lambda x, k: gradients(function, x, k, 1))(*shapes)).count(
            "transpose["
        )

    assert transposes(linear) == 0
    assert transposes(jnp.tensordot) > 0


def test_the_remat_policy_of_products_keeps_them():
    # They were hidden from it in the function's own derivative, so that `dots` kept nothing.
    def products(policy):
        @functools.partial(jax.checkpoint, policy=policy)
        def layer(x, kernel):
            return jnp.sum(jnp.sin(linear(x, kernel, 1)))

        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 7, 6), (6, 5))]
        return str(jax.make_jaxpr(jax.grad(layer, (0, 1)))(*shapes)).count("dot_general[")

    assert products(jax.checkpoint_policies.nothing_saveable) == 4
    assert products(jax.checkpoint_policies.dots_with_no_batch_dims_saveable) == 3
