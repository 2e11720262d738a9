"""Training data: a features file and the pictures it was made from -> batches.

    features file   safetensors: tensor "features" float32 [n, P, E]; metadata "images": a JSON
                    list of n image paths relative to the image root
    token file      safetensors: tensor "visual_tokens" float32 [n, P, E] (paint.py reads it)

Both may say in their metadata which encoder they come from ("encoder_fingerprint"). A batch is a
pure function of (seed, step): resuming needs no state but the step.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from metamorph_jax.errors import UserError, nearest
from metamorph_jax.typing import Float, Int, Shaped
from metamorph_jax.visualizer.latents import PixelLatents, VaeLatents
from metamorph_jax.visualizer.schema import VisualizerConfig

FEATURES, VISUAL_TOKENS = "features", "visual_tokens"
ENCODER = "encoder_fingerprint"
_ORDER_STREAM, _NOISE_STREAM = 0, 1


@dataclasses.dataclass(frozen=True)
class PictureData:
    """Visual tokens and latents of all training pictures, in memory.

    Attributes:
        tokens: what the encoder saw in each picture.
        latents: the pictures as the diffusion works on them.
        fingerprint: hash of the tokens and the image paths.
        encoder_fingerprint: of the encoder, where the features file names it.
    """

    tokens: Float[Tensor, "count P E"]
    latents: Float[Tensor, "count channels rows columns"]
    fingerprint: str
    encoder_fingerprint: str | None = None

    def batch_indices(self, seed: int, step: int, batch_size: int) -> Int[Tensor, "B"]:
        """Returns which pictures step `step` trains on: epochs in random order, back to back."""
        count = len(self.tokens)
        wanted = range(step * batch_size, (step + 1) * batch_size)
        first_epoch, last_epoch = wanted.start // count, (wanted.stop - 1) // count
        orders = [
            torch.randperm(count, generator=make_generator(seed, _ORDER_STREAM, epoch))
            for epoch in range(first_epoch, last_epoch + 1)
        ]
        offset = wanted.start - first_epoch * count
        return torch.cat(orders)[offset : offset + batch_size]


def noise_generator(seed: int, step: int) -> torch.Generator:
    """Returns the generator that draws everything random in step `step`."""
    return make_generator(seed, _NOISE_STREAM, step)


def make_generator(*numbers: int) -> torch.Generator:
    """Returns a generator whose seed mixes all the numbers."""
    (seed,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(seed))


def load_picture_data(
    features_file: Path,
    image_root: Path,
    config: VisualizerConfig,
    latents: PixelLatents | VaeLatents,
) -> PictureData:
    """Returns the training data, all pictures encoded once.

    Raises:
        UserError: a file is missing or unreadable, or does not fit `config`; names it.
    """
    tokens, metadata = read_tokens(features_file, FEATURES)
    check_token_shape(tokens, config, f"{features_file}", "the recipe (config.model)")
    paths = _image_paths(features_file, metadata, len(tokens))
    side = config.latents.picture_size
    pictures = [_read_picture(image_root, name, side, features_file) for name in paths]
    encoded = latents.encode(torch.from_numpy(np.stack(pictures)))
    digest = hashlib.sha256(tokens.numpy().tobytes())
    digest.update(json.dumps(paths).encode())
    return PictureData(tokens, encoded, digest.hexdigest()[:16], metadata.get(ENCODER))


def read_tokens(file: Path, name: str) -> tuple[Float[Tensor, "count P E"], dict[str, str]]:
    """Returns the tensor called `name` and the metadata of a safetensors file.

    Raises:
        UserError: no such file, not a safetensors file, no such tensor, not [n, P, E] floats,
            empty, or not finite.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; a safetensors file with {name!r} was expected")
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            if name not in names:
                near = nearest(name, names)
                guess = f"; did you mean {near[0]!r}?" if near else ""
                raise UserError(f"{file}: no tensor {name!r}; it holds {', '.join(names)}{guess}")
            tokens, metadata = opened.get_tensor(name), opened.metadata() or {}
    except SafetensorError as error:
        raise UserError(
            f"{file}: not a whole safetensors file ({error}); pickles and the like are never read"
        ) from None
    if tokens.ndim != 3 or not tokens.is_floating_point():
        raise UserError(
            f"{file}: {name!r} is {tokens.dtype} {list(tokens.shape)}; floats "
            "[pictures, tokens, width] were expected"
        )
    if len(tokens) == 0:
        raise UserError(f"{file}: {name!r} holds no picture ({list(tokens.shape)})")
    is_bad = ~tokens.isfinite().all(dim=(1, 2))
    if is_bad.any():
        first = int(is_bad.nonzero()[0])
        raise UserError(f"{file}: NaN or infinity in {name!r} of picture {first} (and maybe more)")
    return tokens.float(), metadata


def check_token_shape(
    tokens: Float[Tensor, "count P E"], config: VisualizerConfig, file: str, expected_by: str
) -> None:
    """Compares the number and width of visual tokens with what the model takes.

    Raises:
        UserError: they differ; names the file and the numbers.
    """
    _, num_tokens, token_dim = tokens.shape
    if (num_tokens, token_dim) != (config.num_tokens, config.token_dim):
        raise UserError(
            f"{file}: {num_tokens} visual tokens of width {token_dim} per picture, but "
            f"{expected_by} has num_tokens={config.num_tokens}, token_dim={config.token_dim}; "
            "use tokens of the encoder that the visualizer belongs to"
        )


def check_same_encoder(theirs: str | None, ours: str | None, file: str) -> None:
    """Compares the encoders of a token file and of a visualizer; what is unknown passes.

    Raises:
        UserError: both are known and differ, so pictures would be noise in the right shape.
    """
    if theirs and ours and theirs != ours:
        raise UserError(
            f"{file}: tokens of another encoder ({theirs[:12]}) than the one that the visualizer "
            f"was trained on ({ours[:12]}); train a visualizer on this encoder's features"
        )


def _image_paths(file: Path, metadata: dict[str, str], count: int) -> list[str]:
    """Returns the image paths in a features file."""
    try:
        paths = json.loads(metadata.get("images", "null"))
    except json.JSONDecodeError:
        paths = None
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise UserError(f'{file}: its metadata has no "images", a JSON list of image paths')
    if len(paths) != count:
        raise UserError(f"{file}: features of {count} pictures, but {len(paths)} image paths")
    return paths


def _read_picture(
    root: Path, name: str, side: int, listed_in: Path
) -> Shaped[np.ndarray, "height width 3"]:
    """Returns one picture as uint8 RGB."""
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{listed_in}: image path {name!r} leads out of --image_root={root}")
    try:
        with Image.open(path) as opened:
            picture = np.array(opened.convert("RGB"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such image, but {listed_in} lists it; is --image_root={root} right?"
        ) from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(f"{path}: not a readable image ({error})") from None
    if picture.shape[:2] != (side, side):
        height, width = picture.shape[:2]
        raise UserError(
            f"{path}: {width}x{height} pixels, expected {side}x{side} "
            "(config.model.latents.picture_size)"
        )
    return picture
