"""The five layers with parameters that everything is made of.

Each parameter carries logical axis names, which `sharding/rules.py` maps to the mesh. Parameters
are held in `param_dtype` and cast to `dtype` for products; norms compute in float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from metamorph_jax.models.lookup import look_up
from metamorph_jax.typing import Array, Float, Int

Initializer = jax.nn.initializers.Initializer
FanInInit = Callable[[int], Initializer]  # fan_in -> initialiser


def fan_in_normal(scale: float = 1.0) -> FanInInit:
    """Returns an initialiser: normal with standard deviation scale / sqrt(fan_in)."""
    return lambda fan_in: nn.initializers.normal(scale * fan_in**-0.5)


def fixed_normal(stddev: float) -> FanInInit:
    """Returns an initialiser: normal with this standard deviation, whatever the fan-in."""
    return lambda fan_in: nn.initializers.normal(stddev)


def torch_uniform(fan_in: int) -> Initializer:
    """Returns the default of `torch.nn.Linear`: uniform in +-1/sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(rng, shape, dtype=jnp.float32):
        return jax.random.uniform(rng, shape, dtype, -bound, bound)

    return init


def zeros(fan_in: int) -> Initializer:
    """Returns the initialiser of biases that start at zero."""
    return nn.initializers.zeros_init()


class Linear(nn.Module):
    """A product with a kernel, written as an einsum, plus an optional bias.

    Attributes:
        equation: "input,kernel->output"; letters as in `metamorph_jax/typing.py`, and lower-case
            letters for what has none. Input and output start with "...".
        shape: of the kernel.
        axes: logical names of the kernel's dimensions.
        kernel_init: fan_in -> initialiser.
        bias_init: fan_in -> initialiser; None: no bias.
        result_dtype: of the result if it is to be finer than `dtype`.
    """

    equation: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    kernel_init: FanInInit = fan_in_normal()
    bias_init: FanInInit | None = None
    result_dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns the product in `dtype`, or `result_dtype` if that is set."""
        inputs, rest = self.equation.split(",")
        kernel_letters, outputs = rest.split("->")
        sizes = dict(zip(kernel_letters, self.shape, strict=True))
        fan_in = 1
        for letter in kernel_letters:
            fan_in *= sizes[letter] if letter in inputs else 1
        init = nn.with_logical_partitioning(self.kernel_init(fan_in), self.axes)
        kernel = self.param("kernel", init, self.shape, self.param_dtype)
        operands = x.astype(self.dtype), kernel.astype(self.dtype)
        num_summed = sum(letter in inputs for letter in kernel_letters)
        # Not `jnp.einsum`: it sums over "NH" in alphabetical order, for which the compiler then
        # transposes the kernel at every call.
        y = jnp.tensordot(*operands, num_summed, preferred_element_type=self.result_dtype)
        if self.bias_init is None:
            return y
        kept = [i for i, letter in enumerate(kernel_letters) if letter in outputs]
        axes = tuple(self.axes[i] for i in kept)
        shape = tuple(self.shape[i] for i in kept)
        init = nn.with_logical_partitioning(self.bias_init(fan_in), axes)
        bias = self.param("bias", init, shape, self.param_dtype).astype(y.dtype)
        return y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)


class Embed(nn.Module):
    """A table of vectors, looked up by id.

    Attributes:
        shape: (rows, width).
        axes: logical names of both.
        stddev: of the normal initialisation.
    """

    shape: tuple[int, int]
    axes: tuple[str, str]
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    stddev: float

    def setup(self):
        """Creates the table."""
        init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), self.axes)
        self.embedding = self.param("embedding", init, self.shape, self.param_dtype)

    def __call__(self, ids: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """Returns the rows at `ids`; NaN for an id past the end, so that it cannot go unnoticed."""
        return look_up(self.embedding, ids, self.axes, self.dtype)


class Vector(nn.Module):
    """One learned vector.

    Attributes:
        size: of the vector.
        axis: logical name of its dimension.
        stddev: of the normal initialisation.
    """

    size: int
    axis: str
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    stddev: float

    @nn.compact
    def __call__(self) -> Float[Array, "D"]:
        """Returns the vector in `dtype`."""
        init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), (self.axis,))
        return self.param("embedding", init, (self.size,), self.param_dtype).astype(self.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * scale, in float32.

    Attributes:
        axis: logical name of the normalised dimension.
    """

    eps: float
    axis: str
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Returns the normalised `x` in `dtype`."""
        init = nn.with_logical_partitioning(nn.initializers.ones_init(), (self.axis,))
        scale = self.param("scale", init, x.shape[-1:], self.param_dtype)
        x = x.astype(jnp.float32)
        y = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        return (y * _last_dim(scale, x.ndim)).astype(self.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / standard deviation * scale + bias, in float32.

    Attributes:
        axis: logical name of the normalised dimension.
    """

    eps: float
    axis: str
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Returns the normalised `x` in `dtype`."""
        ones, zero = nn.initializers.ones_init(), nn.initializers.zeros_init()
        partition = nn.with_logical_partitioning
        scale = self.param("scale", partition(ones, (self.axis,)), x.shape[-1:], self.param_dtype)
        bias = self.param("bias", partition(zero, (self.axis,)), x.shape[-1:], self.param_dtype)
        x = x.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.eps)
        return (y * _last_dim(scale, x.ndim) + _last_dim(bias, x.ndim)).astype(self.dtype)


def _last_dim(vector: Float[Array, "D"], ndim: int) -> Float[Array, "..."]:
    """Returns float32 `vector` with leading dimensions of one, so that nothing is promoted."""
    return vector.astype(jnp.float32).reshape((1,) * (ndim - 1) + vector.shape)
