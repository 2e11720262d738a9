"""Files of visual tokens, read where they lie.

    features file   safetensors: tensor "features" floats [n, P, E]; metadata "images": a JSON
                    list of n image paths relative to the image root
    token file      safetensors: tensor "visual_tokens" floats [n, P, E] (paint.py reads it)

Both may say in their metadata which encoder they come from ("encoder_fingerprint") and what it saw
of pictures that are not square ("view").
"""

import bisect
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from metamorph_jax.data.faults import BadSample
from metamorph_jax.errors import UserError, nearest
from metamorph_jax.typing import Float
from metamorph_jax.visualizer.pictures import Names, names_in_metadata
from metamorph_jax.visualizer.schema import VisualizerConfig

FEATURES, VISUAL_TOKENS = "features", "visual_tokens"
ENCODER, VIEW = "encoder_fingerprint", "view"
_FLOATS = ("F64", "F32", "F16", "BF16")
_NUM_HASHED = 64  # rows of each file whose content is part of a fingerprint


class FeatureFiles:
    """Visual tokens of many pictures in one or more features files; nothing is kept in memory.

    Args:
        files: features files, in order.
        config: of the visualizer that they train.

    Attributes:
        encoder_fingerprint: of the encoder, where the files name it.
        fingerprint: hash of the files' headers and of some of their rows.

    Raises:
        UserError: a file is missing, unreadable, of another encoder or view, or does not fit
            `config`; names it.
    """

    def __init__(self, files: Sequence[Path], config: VisualizerConfig):
        self._files = tuple(files)
        digest = hashlib.sha256()
        counts, names, encoders = [], [], set()
        for file in files:
            with _open_tensor(file, FEATURES) as (opened, shape):
                metadata = opened.metadata() or {}
                rows = opened.get_slice(FEATURES)
                for index in range(0, shape[0], max(1, shape[0] // _NUM_HASHED)):
                    digest.update(rows[index].float().numpy().tobytes())
            _check_shape(shape, config, f"{file}", "the recipe (config.model)")
            _check_view(metadata.get(VIEW), config, file)
            digest.update(json.dumps([shape, metadata], sort_keys=True).encode())
            counts.append(shape[0])
            names.append(names_in_metadata(metadata, shape[0], file))
            encoders.add(metadata.get(ENCODER))
        if len(encoders) > 1:
            encoders.discard(None)  # what is unknown passes
        if len(encoders) > 1:
            raise UserError(
                f"--features={','.join(map(str, files))}: files of {len(encoders)} encoders "
                f"({', '.join(str(name)[:12] for name in encoders)}); give those of one"
            )
        self.encoder_fingerprint: str | None = encoders.pop()
        self.fingerprint = digest.hexdigest()
        self.names = Names(b"".join(part.bytes.tobytes() for part in names))
        self._ends = list(accumulate(counts))
        self._slices: list[Any] | None = None

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_slices": None}  # worker processes open the files themselves

    def row(self, index: int) -> Float[Tensor, "P E"]:
        """Returns the visual tokens of one picture.

        Raises:
            BadSample: they are not finite.
        """
        if self._slices is None:
            opened = [safe_open(file, framework="pt") for file in self._files]
            self._slices = [file.get_slice(FEATURES) for file in opened]
        part = bisect.bisect_right(self._ends, index)
        within = index - (self._ends[part - 1] if part else 0)
        tokens = self._slices[part][within].float()
        if not tokens.isfinite().all():
            file = self._files[part]
            message = f"{file}: NaN or infinity in {FEATURES!r} of picture {within}"
            raise BadSample("unreadable_media", message)
        return tokens


def read_tokens(file: Path, name: str) -> tuple[Float[Tensor, "count P E"], dict[str, str]]:
    """Returns the tensor called `name` and the metadata of a safetensors file.

    Raises:
        UserError: no such file, not a safetensors file, no such tensor, not [n, P, E] floats,
            empty, or not finite.
    """
    with _open_tensor(file, name) as (opened, _):
        tokens, metadata = opened.get_tensor(name), opened.metadata() or {}
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
    _check_shape(tokens.shape, config, file, expected_by)


def _check_shape(
    shape: Sequence[int], config: VisualizerConfig, file: str, expected_by: str
) -> None:
    _, num_tokens, token_dim = shape
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


def _check_view(view: str | None, config: VisualizerConfig, file: Path) -> None:
    """Compares what the encoder saw with the recipe; what is unknown passes."""
    if view is not None and view != config.view:
        raise UserError(
            f"{file}: features of view {view!r}, but the recipe has config.model.view="
            f"{config.view!r}; set that, or give --encoder instead of --features"
        )


@contextmanager
def _open_tensor(file: Path, name: str) -> Iterator[tuple[Any, list[int]]]:
    """Gives a safetensors file, opened, and the shape of the visual tokens called `name` in it."""
    if not file.is_file():
        raise UserError(f"{file}: no such file; a safetensors file with {name!r} was expected")
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            if name not in names:
                near = nearest(name, names)
                guess = f"; did you mean {near[0]!r}?" if near else ""
                raise UserError(f"{file}: no tensor {name!r}; it holds {', '.join(names)}{guess}")
            rows = opened.get_slice(name)
            shape, dtype = rows.get_shape(), rows.get_dtype()
            if len(shape) != 3 or dtype not in _FLOATS:
                raise UserError(
                    f"{file}: {name!r} is {dtype} {shape}; floats [pictures, tokens, width] were "
                    "expected"
                )
            if shape[0] == 0:
                raise UserError(f"{file}: {name!r} holds no picture ({shape})")
            yield opened, shape
    except SafetensorError as error:
        raise UserError(
            f"{file}: not a whole safetensors file ({error}); pickles and the like are never read"
        ) from None
