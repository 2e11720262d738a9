"""The training data as steps see it: step -> this process's rows of the batch, with their noise.

Where visual tokens and latents were computed before, they are read; else the pictures are decoded
(in worker processes) for the encoder and the autoencoder, which run in trainer.py.
"""

import dataclasses
import hashlib
import json
import signal
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from metamorph_jax.data.faults import BadSample
from metamorph_jax.errors import UserError
from metamorph_jax.typing import Bool, Float, Shaped
from metamorph_jax.visualizer.dataset import FeatureFiles
from metamorph_jax.visualizer.diffusion import Noise, draw_noise
from metamorph_jax.visualizer.latent_cache import LatentCache
from metamorph_jax.visualizer.latents import PixelLatents
from metamorph_jax.visualizer.order import batch_indices
from metamorph_jax.visualizer.pictures import Pictures, painted_square, seen_square
from metamorph_jax.visualizer.quarantine import Complaint
from metamorph_jax.visualizer.schema import VisualizerRunConfig


@dataclasses.dataclass(frozen=True)
class PictureData:
    """Where the training data comes from; all of these are read by number of the picture.

    Attributes:
        pictures: the files.
        features: visual tokens that were computed before, or None.
        latents: the same for latents.
        encoder_size: side of the pictures that the encoder takes, where there is one.
    """

    pictures: Pictures
    features: FeatureFiles | None = None
    latents: "LatentCache | KeptLatents | None" = None
    encoder_size: int = 0

    @property
    def encoder_fingerprint(self) -> str | None:
        """Of the encoder, where the features name it."""
        return self.features and self.features.encoder_fingerprint

    @property
    def fingerprint(self) -> str:
        """Hash of the list of pictures and of the features."""
        digest = hashlib.sha256(self.pictures.names.bytes.tobytes())
        digest.update(json.dumps(self.features and self.features.fingerprint).encode())
        return digest.hexdigest()[:16]


class KeptLatents:
    """Latents in memory, for pictures as small as scans of digits."""

    def __init__(self, latents: Float[Tensor, "count channels rows columns"]):
        self._latents = latents

    @classmethod
    def of(cls, pictures: Pictures, codec: PixelLatents, size: int) -> "KeptLatents":
        """Returns the latents of all pictures, which must have `size` x `size` pixels.

        Raises:
            UserError: a picture is missing, unreadable or of another size; names it.
        """
        squares = []
        for index in range(len(pictures)):
            image = pictures.open(index)
            if image.size != (size, size):
                raise UserError(
                    f"{pictures.names[index]}: {image.width}x{image.height} pixels, expected "
                    f"{size}x{size} (config.model.latents.picture_size)"
                )
            squares.append(np.asarray(image))
        return cls(codec.encode(torch.from_numpy(np.stack(squares))))

    def row(self, index: int) -> Float[Tensor, "channels rows columns"]:
        """Returns the latents of one picture."""
        return self._latents[index]


class Rows(NamedTuple):
    """What a process computes at once. Of each pair below, one is None.

    Attributes:
        tokens: visual tokens; or
        seen: pictures for the encoder, uint8.
        latents: what the diffusion works on; or
        squares: pictures for the autoencoder, uint8.
        noise: all that is random.
        is_bad: rows that are empty places.
        complaints: why.
    """

    tokens: Float[Tensor, "B P E"] | None
    seen: Shaped[Tensor, "B side side 3"] | None
    latents: Float[Tensor, "B channels rows columns"] | None
    squares: Shaped[Tensor, "B height width 3"] | None
    noise: Noise
    is_bad: Bool[Tensor, "B"]
    complaints: list[Complaint]


class Feed(Dataset):
    """Rows by number of the micro-batch: `grad_accum_steps` of them are a step.

    Args:
        data: where they come from.
        config: the recipe.
        share: (number of this process, processes in all); each has consecutive rows of the batch.

    Raises:
        UserError: the batch does not divide by processes and accumulation.
    """

    def __init__(
        self, data: PictureData, config: VisualizerRunConfig, share: tuple[int, int] = (0, 1)
    ):
        self._data, self._config = data, config
        self._rank, num_processes = share
        self._num_parts = config.training.grad_accum_steps
        self._num_rows, left = divmod(config.training.batch_size, num_processes * self._num_parts)
        if left:
            raise UserError(
                f"config.training.batch_size={config.training.batch_size} is no multiple of "
                f"{num_processes} processes x grad_accum_steps={self._num_parts}"
            )

    def __len__(self) -> int:
        return len(self._data.pictures)

    def __getitem__(self, number: int) -> Rows:
        step, part = divmod(number, self._num_parts)
        first = (self._rank * self._num_parts + part) * self._num_rows
        places = range(first, first + self._num_rows)
        training, seed = self._config.training, self._config.seed
        order = batch_indices(len(self._data.pictures), seed, step, training.batch_size)
        loaded, complaints, is_bad = [], [], torch.zeros(len(places), dtype=torch.bool)
        for row, index in enumerate(order[first : places.stop].tolist()):
            try:
                loaded.append(self._load(index))
            except BadSample as error:
                loaded.append(self._empty())
                is_bad[row] = True
                name = self._data.pictures.names[index]
                complaints.append({"picture": name, "message": str(error)})
        columns = {name: torch.stack([row[name] for row in loaded]) for name in loaded[0]}
        fields = (columns.get(name) for name in ("tokens", "seen", "latents", "squares"))
        return Rows(*fields, draw_noise(self._config, step, places), is_bad, complaints)

    def steps(self, first: int, last: int) -> Iterator[list[Rows]]:
        """Yields the micro-batches of each step from `first` to before `last`."""
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=range(first * self._num_parts, last * self._num_parts),
            num_workers=self._config.data.num_workers,
            worker_init_fn=_leave_signals_alone,
            pin_memory=torch.cuda.is_available(),
        )
        source = iter(loader)
        for _ in range(first, last):
            yield [next(source) for _ in range(self._num_parts)]

    def _load(self, index: int) -> dict[str, Tensor]:
        """Returns one picture, by names of `Rows`."""
        data, model, found = self._data, self._config.model, {}
        if data.features is not None:
            found["tokens"] = data.features.row(index)
        if data.latents is not None:
            found["latents"] = data.latents.row(index)
        if len(found) == 2:
            return found
        image = data.pictures.open(index)
        if data.features is None:
            seen = seen_square(image, data.encoder_size, model.view)
            found["seen"] = torch.from_numpy(seen.copy())
        if data.latents is None:
            square = painted_square(image, model.latents.picture_size, model.view)
            found["squares"] = torch.from_numpy(square.copy())
        return found

    def _empty(self) -> dict[str, Tensor]:
        """Returns zeros in the place of one picture."""
        data, model = self._data, self._config.model
        latents, side = model.latents, data.encoder_size
        found = {}
        if data.features is not None:
            found["tokens"] = torch.zeros(model.num_tokens, model.token_dim)
        else:
            found["seen"] = torch.zeros((side, side, 3), dtype=torch.uint8)
        if data.latents is not None:
            found["latents"] = torch.zeros(latents.channels, latents.size, latents.size)
        else:
            shape = (latents.picture_size, latents.picture_size, 3)
            found["squares"] = torch.zeros(shape, dtype=torch.uint8)
        return found


def _leave_signals_alone(worker: int) -> None:
    """Ctrl-C reaches worker processes, too; the training process says when they end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
