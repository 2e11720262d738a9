"""Visual tokens of images from a checkpoint's frozen tower, in batches.

For the file that `cache_features.py` writes and for reports; generation encodes its own prompts.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import numpy as np

from metamorph_jax.checkpoints.store import CheckpointStore
from metamorph_jax.config.loading import from_dict
from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.config.schema_run import RunConfig
from metamorph_jax.data.images import ImageLoader, pad_color
from metamorph_jax.decoding.generator import find_checkpoints
from metamorph_jax.errors import UserError
from metamorph_jax.models.init import abstract_params
from metamorph_jax.models.metamorph import MetaMorph
from metamorph_jax.ops.normalize import PIXEL_STATISTICS
from metamorph_jax.trees import flatten
from metamorph_jax.typing import Array, Float, PyTree, Shaped


class Encoder:
    """The tower with everything that happens to its tokens before anyone uses them.

    Args:
        config: of the model.
        tower: the part "vision_tower" of the parameters.
        geometry: of the images, as in the recipe's data (`square` or `pad`).
        batch_size: images per call; the last batch is filled up, so there is one compilation.
    """

    def __init__(
        self, config: ModelConfig, tower: PyTree, geometry: str = "square", batch_size: int = 64
    ):
        self.config, self.geometry, self._batch_size = config, geometry, batch_size
        self._params = {"vision_tower": tower}

        def encode(params: PyTree, images: Array) -> Array:
            return MetaMorph(config).apply({"params": params}, images[:, None], method="encode")

        self._encode = jax.jit(encode)

    @classmethod
    def load(cls, run: Path, step: int | None = None, batch_size: int = 64) -> "Encoder":
        """Returns the tower of a run's newest intact checkpoint, or of the one at `step`.

        Args:
            run: a run's folder, its `checkpoints`, or one of these.
            step: global step; None: the newest.
            batch_size: images per call.

        Raises:
            UserError: there is no usable checkpoint.
        """
        directory, step = find_checkpoints(run, step)
        store = CheckpointStore(directory)
        meta = store.read_meta(step)
        if meta is None:
            raise UserError(f"{run} holds no complete checkpoint")
        config = from_dict(json.loads(meta.recipe), RunConfig)
        params, _ = store.restore_params(abstract_params(config.model), meta.step)
        geometry = config.stages[-1].data.image_geometry
        return cls(config.model, params["vision_tower"], geometry, batch_size)

    def encode_files(
        self, image_root: Path, paths: Sequence[str], where: str = "images"
    ) -> Float[np.ndarray, "count P E"]:
        """Returns the visual tokens of image files, in order.

        Args:
            image_root: folder that the paths are relative to and may not leave.
            paths: of the images.
            where: who names them, for messages.

        Raises:
            UserError: an image is missing or cannot be read; names it.
        """
        vision = self.config.vision
        color = pad_color(PIXEL_STATISTICS[vision.family][0])
        loader = ImageLoader(str(image_root), vision.image_size, self.geometry, color)
        return self.encode((loader.load(path, where) for path in paths), len(paths))

    def encode(
        self, images: Iterable[Shaped[np.ndarray, "height width 3"]], count: int
    ) -> Float[np.ndarray, "count P E"]:
        """Returns the visual tokens of `count` uint8 images of the tower's size."""
        size, batch = self.config.vision.image_size, self._batch_size
        tokens = self.config.visual_tokens.num_tokens
        features = np.empty((count, tokens, self.config.visual_dim), np.float32)
        source = iter(images)
        for start in range(0, count, batch):
            used = min(batch, count - start)
            pixels = np.zeros((batch, size, size, 3), np.uint8)
            for slot in range(used):
                pixels[slot] = next(source)
            encoded = np.asarray(self._encode(self._params, pixels))[:used, 0]
            features[start : start + used] = encoded
        return features

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the tower's parameters as they are computed with: names, shapes, bytes."""
        digest = hashlib.sha256()
        for name, leaf in sorted(flatten(self._params).items()):
            array = np.asarray(leaf.astype(self.config.dtype))
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()
