"""Visual tokens -> decoder width: what lets a frozen decoder read a picture.

The way back, decoder width -> visual tokens, is in `vision_head.py`; both are `GeluMlp`.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.models.layers import FanInInit, Linear, torch_uniform
from metamorph_jax.sharding.rules import constrain
from metamorph_jax.typing import Array, Float


class GeluMlp(nn.Module):
    """Linear layers `layers_0`, `layers_1`, ... with *exact* (erf) GELU between them.

    The tanh form would change losses by 1e-5 but gradients by 1e-3.

    Attributes:
        widths: input, inner and output widths; one linear layer between neighbours.
        axes: logical names of the widths.
        leading: logical names of the dimensions before; those that an input lacks are the last.
    """

    widths: tuple[int, ...]
    axes: tuple[str, ...]
    leading: tuple[str | None, ...]
    kernel_init: FanInInit
    bias_init: FanInInit
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch D"]:
        """Returns the output of the last linear layer in `dtype`."""
        for i in range(len(self.widths) - 1):
            if i > 0:
                x = jax.nn.gelu(x, approximate=False)
            x = Linear(
                "...C,CD->...D",
                self.widths[i : i + 2],
                self.axes[i : i + 2],
                self.dtype,
                self.param_dtype,
                self.kernel_init,
                self.bias_init,
                name=f"layers_{i}",
            )(x)
            # Where devices share rows, the compiler would gather all rows for a kernel's gradient.
            x = constrain(x, *self.leading[: x.ndim - 1], self.axes[i + 1])
        return x


def create_connector(config: ModelConfig, dtype: jnp.dtype, param_dtype: jnp.dtype) -> GeluMlp:
    """Returns the connector: visual_dim -> embed_dim, `num_connector_layers` linear layers.

    Initialised like a torch `Linear`, since the reference builds it outside of its own
    initialisation.

    **Source:** MetaMorph `model/multimodal_projector/builder.py`.
    """
    num_layers, width = config.num_connector_layers, config.llm.embed_dim
    return GeluMlp(
        widths=(config.visual_dim,) + (width,) * num_layers,
        axes=("visual", *alternating_axes(num_layers, last="embed")),
        leading=("batch", None, None),
        kernel_init=torch_uniform,
        bias_init=torch_uniform,
        dtype=dtype,
        param_dtype=param_dtype,
    )


def alternating_axes(count: int, last: str) -> tuple[str, ...]:
    """Returns "embed" and "mlp" in turn, ending with `last`.

    Neighbours must differ: a kernel with both dimensions called "embed" would need one mesh axis
    twice.
    """
    other = {"embed": "mlp", "mlp": "embed"}
    names = [last]
    while len(names) < count:
        names.append(other[names[-1]])
    return tuple(reversed(names[:count]))
