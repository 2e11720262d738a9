"""The frozen tower alone: pixels -> visual tokens in batches, and a name for what it computes.

For features that are kept: `training/feature_cache.py` writes what a stage reads instead of pixels,
`decoding/features.py` what the visualizer is trained on.

How a matrix product is summed depends on its number of rows, so on XLA the features of an image
depend, in their last bits, on how many images a device encodes at once; in bfloat16 also on whether
the program is partitioned over devices (the compiler then leaves out other roundings), and with
tensor parallelism on how it splits sums. They depend neither on the other images, nor on the place
in the batch, nor on the program around the tower. Encoded as a training step does it, they are
therefore the step's own, bit for bit (tests/unit/training/test_cached_features.py).
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.models.metamorph import MetaMorph
from metamorph_jax.ops.normalize import PIXEL_STATISTICS
from metamorph_jax.sharding.rules import batch_sharding
from metamorph_jax.trees import flatten
from metamorph_jax.typing import Array, Float, PyTree, Shaped

_SAME_RESULT = ("remat", "scan_unroll")  # how it is computed, not what


class TowerEncoder:
    """The tower with everything that happens to its tokens before anyone uses them.

    Args:
        config: of the model.
        tower: the part "vision_tower" of the parameters.
        batch_size: images per device and call; the last batch is filled up, so there is one
            compilation.
        mesh: of one process, without tensor parallelism; None: the default device.
    """

    def __init__(
        self, config: ModelConfig, tower: PyTree, batch_size: int = 64, mesh: Mesh | None = None
    ):
        self.config = config
        self._batch_size = batch_size * (1 if mesh is None else mesh.size)
        self._mesh = mesh
        self._params = {"vision_tower": tower}
        if mesh is not None:
            self._params = jax.device_put(self._params, NamedSharding(mesh, PartitionSpec()))

        def encode(params: PyTree, images: Array) -> Array:
            return MetaMorph(config).apply({"params": params}, images[:, None], method="encode")

        self._encode = jax.jit(encode)

    def stream(
        self, images: Iterable[Shaped[np.ndarray, "height width 3"]]
    ) -> Iterator[Float[np.ndarray, "P E"]]:
        """Yields the float32 visual tokens of each uint8 image of the tower's size, in order.

        The next batch is collected while the devices compute one.
        """
        source, size = iter(images), self.config.vision.image_size
        pending: tuple[Array, int] | None = None
        while chunk := list(itertools.islice(source, self._batch_size)):
            pixels = np.zeros((self._batch_size, size, size, 3), np.uint8)
            for slot, image in enumerate(chunk):
                pixels[slot] = image
            encoded = self._dispatch(pixels)
            if pending is not None:
                yield from np.asarray(pending[0])[: pending[1], 0]
            pending = encoded, len(chunk)
        if pending is not None:
            yield from np.asarray(pending[0])[: pending[1], 0]

    def _dispatch(self, pixels: Shaped[np.ndarray, "B height width 3"]) -> Array:
        if self._mesh is None:
            return self._encode(self._params, pixels)
        with jax.set_mesh(self._mesh):
            return self._encode(self._params, jax.device_put(pixels, batch_sharding(self._mesh)))

    def encode(
        self, images: Iterable[Shaped[np.ndarray, "height width 3"]], count: int
    ) -> Float[np.ndarray, "count P E"]:
        """Returns the visual tokens of `count` uint8 images of the tower's size."""
        shape = (count, self.config.visual_tokens.num_tokens, self.config.visual_dim)
        features = np.empty(shape, np.float32)
        with contextlib.closing(self.stream(itertools.islice(images, count))) as stream:
            for index, encoded in enumerate(stream):
                features[index] = encoded
        return features

    @property
    def fingerprint(self) -> str:
        """Names what it computes, see `encoder_fingerprint`."""
        return encoder_fingerprint(self.config, self._params["vision_tower"])


def encoder_fingerprint(config: ModelConfig, tower: PyTree) -> str:
    """Returns a SHA-256 of all that decides which visual tokens an image of the tower's size has.

    That is the tower's parameters as they are computed with (names, shapes, bytes), its layout,
    what is done to its tokens, and how pixels are normalised.

    Args:
        config: of the model.
        tower: the part "vision_tower" of its parameters.
    """
    vision = dataclasses.asdict(config.vision)
    for name in _SAME_RESULT:
        del vision[name]
    family = dataclasses.replace(config.vision, activation=None)
    if config.vision.mlp_activation == family.mlp_activation:
        del vision["activation"]  # not a part of names before it could be chosen
    tokens = dataclasses.asdict(config.visual_tokens)
    pixels = PIXEL_STATISTICS[config.vision.family]
    text = json.dumps([vision, tokens, config.dtype, pixels], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    for name, leaf in sorted(flatten(tower).items()):
        array = _whole(leaf.astype(config.dtype))
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _whole(array: Array) -> Shaped[np.ndarray, "..."]:
    """Returns an array of which other processes hold parts; all processes call this."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
