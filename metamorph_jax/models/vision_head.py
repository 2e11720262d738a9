"""Decoder width -> visual tokens: what lets a decoder paint.

Normalisation of what comes out is in `metamorph.py`, next to that of the features it must match.
"""

import jax.numpy as jnp

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.models.connector import GeluMlp
from metamorph_jax.models.layers import fixed_normal, zeros

_NUM_LAYERS = {"linear": 1, "mlp": 2, "mlp2x_gelu": 3}


def create_vision_head(config: ModelConfig, dtype: jnp.dtype, param_dtype: jnp.dtype) -> GeluMlp:
    """Returns the vision head: embed_dim -> visual_dim, one to three linear layers.

    Not for `vision_head="none"`: such a model has none.

    **Source:** MetaMorph `model/language_model/metamorph_llama.py`; initialised with N(0, 0.02)
    and zero biases.
    """
    num_layers, width = _NUM_LAYERS[config.vision_head], config.llm.embed_dim
    # The output width is not split, and neighbours differ: embed, mlp, embed, visual.
    inputs = tuple("embed" if i % 2 == 0 else "mlp" for i in range(num_layers))
    return GeluMlp(
        widths=(width,) * num_layers + (config.visual_dim,),
        axes=(*inputs, "visual"),
        leading=("batch", "length"),
        kernel_init=fixed_normal(0.02),
        bias_init=zeros,
        dtype=dtype,
        param_dtype=param_dtype,
    )
