"""Visual tokens of image files from a checkpoint's frozen tower.

For the file that the visualizer is trained on and for reports; generation encodes its own prompts.
The tower itself is in `models/encoder.py`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from metamorph_jax.checkpoints.folders import find_checkpoints
from metamorph_jax.checkpoints.store import CheckpointStore
from metamorph_jax.config.loading import from_dict
from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.config.schema_run import RunConfig
from metamorph_jax.data.images import ImageLoader, pad_color
from metamorph_jax.errors import UserError
from metamorph_jax.models.encoder import TowerEncoder
from metamorph_jax.models.init import abstract_params
from metamorph_jax.ops.normalize import PIXEL_STATISTICS
from metamorph_jax.typing import Float, PyTree


class Encoder(TowerEncoder):
    """A tower that reads files.

    Args:
        config: of the model.
        tower: the part "vision_tower" of the parameters.
        geometry: of the images, as in the recipe's data (`square` or `pad`).
        batch_size: images per call.
    """

    def __init__(
        self, config: ModelConfig, tower: PyTree, geometry: str = "square", batch_size: int = 64
    ):
        super().__init__(config, tower, batch_size)
        self.geometry = geometry

    @classmethod
    def load(cls, run: Path, step: int | None = None, batch_size: int = 64) -> Self:
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
        geometry = config.last_data.image_geometry
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
        loader = ImageLoader(
            str(image_root), vision.image_size, self.geometry, color, vision.family
        )
        return self.encode((loader.load(path, where) for path in paths), len(paths))
