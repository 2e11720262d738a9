"""Parameters, jit and error measure for tests of models; nothing here is a model."""

from collections.abc import Callable

import jax
import numpy as np

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.models.init import abstract_params
from metamorph_jax.typing import PyTree


def random_params(config: ModelConfig, seed: int = 0) -> PyTree:
    """Returns parameters in which every bias and scale matters, without compiling an initialiser.

    Kernels and tables have standard deviation 1 / sqrt(first real dimension), which keeps values
    of order 1.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name, is_stacked = path[-1].key, any(key.key == "blocks" for key in path)
        noise = rng.normal(size=leaf.shape)
        if name in ("kernel", "embedding"):
            fan_in = leaf.shape[min(int(is_stacked), leaf.ndim - 1)]
            noise /= fan_in**0.5 if name == "kernel" else 2.0
        else:
            noise = 0.1 * noise + float(name == "scale")
        return noise.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config))


def quick_jit(function: Callable) -> Callable:
    """Returns the jitted function, compiled without optimisation: for what runs once or twice."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the L2 norm of the difference divided by that of `theirs` (if it is not zero)."""
    size = np.linalg.norm(theirs)
    return np.linalg.norm(np.asarray(ours) - theirs) / (size if size > 0 else 1.0)
