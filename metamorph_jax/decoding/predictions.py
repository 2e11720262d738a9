"""What a model predicts for pictures that it should have drawn, beside what its encoder sees.

For records whose first answer holds a picture. Tokens only, in one file: the visualizer paints both
sides of it (visualizer/reconstruction.py). `predict_pictures.py` is the front door.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from metamorph_jax.checkpoints.manifest import fingerprint
from metamorph_jax.data.conversation import IMAGE_TAG, Image, Text, Turn, read_conversation
from metamorph_jax.data.images import ImageLoader
from metamorph_jax.data.records import Record
from metamorph_jax.data.sources import open_source
from metamorph_jax.data.sources.base import Source
from metamorph_jax.decoding.features import Encoder
from metamorph_jax.decoding.generator import Generator, Prompt, Sampling
from metamorph_jax.errors import UserError
from metamorph_jax.typing import Bool, Float

_MAX_TEXT_TOKENS = 256  # of an answer, beside its picture


@dataclasses.dataclass(frozen=True)
class HeldOutPicture:
    """A picture that the model should draw.

    Attributes:
        where: FILE:LINE of the record.
        prompt: what the user says before it; "<image>" where an image goes.
        prompt_images: files.
        image: the picture itself, relative to the image root.
    """

    where: str
    prompt: str
    prompt_images: tuple[Path, ...]
    image: str


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Visual tokens of held-out pictures from both sides.

    Attributes:
        pictures: that should be drawn.
        encoded: what the encoder makes of each.
        predicted: what the model predicts after the prompt alone; zeros where it drew nothing.
        has_picture: whether it drew.
        answers: its texts.
        encoder_fingerprint: of the encoder.
    """

    pictures: Sequence[HeldOutPicture]
    encoded: Float[np.ndarray, "count P E"]
    predicted: Float[np.ndarray, "count P E"]
    has_picture: Bool[np.ndarray, "count"]
    answers: Sequence[str]
    encoder_fingerprint: str


def load_held_out(file: Path, image_root: Path, limit: int) -> list[HeldOutPicture]:
    """Returns at most `limit` pictures, evenly spread over the file.

    Args:
        file: LLaVA format, `.json` or `.jsonl`.
        image_root: folder that image paths are relative to and may not leave.
        limit: of pictures.

    Raises:
        UserError: a record is malformed, an image is missing, or no first answer holds a picture.
    """
    if limit < 1:
        raise UserError(f"num_pictures={limit}: at least 1 was expected")
    source = open_source(file)
    loader = ImageLoader(str(image_root), size=1)
    bounds = [len(source) * i // limit for i in range(limit + 1)]
    found = [_first_picture(source, loader, range(bounds[i], bounds[i + 1])) for i in range(limit)]
    pictures = [picture for picture in found if picture is not None]
    if not pictures:
        raise UserError(
            f"{file}: no record whose first answer holds a picture; the pictures to predict stand "
            'in answers: {"from": "gpt", "value": "Here it is: <image>"}'
        )
    return pictures


def predict(
    generator: Generator, pictures: Sequence[HeldOutPicture], image_root: Path
) -> Predictions:
    """Returns the visual tokens of pictures, from the encoder and free-running after the prompts.

    Raises:
        UserError: an image cannot be read, or a prompt is too long.
    """
    encoder = Encoder(
        generator.config, generator.params["vision_tower"], generator.image_geometry, batch_size=8
    )
    encoded = encoder.encode_files(image_root, [picture.image for picture in pictures])
    sampling = Sampling(max_new_tokens=encoded.shape[1] + _MAX_TEXT_TOKENS, max_images=1)
    prompts = [Prompt(picture.prompt, picture.prompt_images) for picture in pictures]
    answers = generator.generate(prompts, sampling)
    predicted = np.zeros_like(encoded)
    for index, answer in enumerate(answers):
        if len(answer.visual_tokens):
            predicted[index] = answer.visual_tokens[0]
    return Predictions(
        pictures,
        encoded,
        predicted,
        np.array([len(answer.visual_tokens) > 0 for answer in answers]),
        [answer.text.strip() for answer in answers],
        encoder.fingerprint,
    )


def save_predictions(
    file: Path, predictions: Predictions, image_root: Path, checkpoint: Path
) -> None:
    """Writes predictions for the visualizer, which needs nothing else of the JAX side.

    Tensors "encoded" and "predicted" float32 [n, P, E], "has_picture" uint8 [n]; as metadata JSON
    lists "images", "prompts" and "answers", and "image_root", "step" and two fingerprints.

    Raises:
        UserError: the file cannot be written.
    """
    tensors = {
        "encoded": np.ascontiguousarray(predictions.encoded),
        "predicted": np.ascontiguousarray(predictions.predicted),
        "has_picture": predictions.has_picture.astype(np.uint8),
    }
    metadata = {
        "images": json.dumps([picture.image for picture in predictions.pictures]),
        "prompts": json.dumps([picture.prompt for picture in predictions.pictures]),
        "answers": json.dumps(list(predictions.answers)),
        "image_root": str(image_root.absolute()),
        "step": checkpoint.name,
        "encoder_fingerprint": predictions.encoder_fingerprint,
        "checkpoint_fingerprint": fingerprint(checkpoint),
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, file, metadata)
    except Exception as error:  # the library has its own for what the system says
        raise UserError(f"{file}: the predictions could not be written ({error})") from error


def _first_picture(source: Source, loader: ImageLoader, indices: range) -> HeldOutPicture | None:
    """Returns the first usable record's picture, None if there is none."""
    pictures = (_read(source[index], loader) for index in indices)
    return next((picture for picture in pictures if picture is not None), None)


def _read(record: Record, loader: ImageLoader) -> HeldOutPicture | None:
    """Returns the picture of a record's first answer, None if that is text alone."""
    turns = read_conversation(record).turns
    asked = next(index for index, turn in enumerate(turns) if turn.role == "user")
    answer = turns[asked + 1 : asked + 2]
    drawn = [part.media for turn in answer for part in turn.parts if isinstance(part, Image)]
    if not drawn or not isinstance(drawn[0], str):
        return None
    images = [part.media for part in turns[asked].parts if isinstance(part, Image)]
    return HeldOutPicture(
        record.where,
        _text(turns[asked]),
        tuple(Path(loader.resolve(media, record.where)) for media in images),
        drawn[0],
    )


def _text(turn: Turn) -> str:
    return "".join(part.text if isinstance(part, Text) else IMAGE_TAG for part in turn.parts)
