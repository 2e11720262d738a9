"""What is asked, and how prompts of any length become batches of few shapes.

Every new shape is a new compiled program, so lengths, rows and images are rounded up to a short
list of sizes, and prompts of like size share a batch. `loop.py` takes it from there.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from metamorph_jax.data import image_files
from metamorph_jax.data.conversation import IMAGE_TAG, read_conversation
from metamorph_jax.data.images import ImageLoader
from metamorph_jax.data.media import whole
from metamorph_jax.data.records import parse_record
from metamorph_jax.data.templates import Example, Template, render_prompt
from metamorph_jax.data.tokenizer import Tokenizer
from metamorph_jax.data.views import ViewLayout, expand_images
from metamorph_jax.decoding.loop import PromptBatch
from metamorph_jax.errors import UserError
from metamorph_jax.typing import Float, Int, Shaped

_SMALLEST_LENGTH = 64  # tokens; below, another program costs more than padding

Pixels = Shaped[np.ndarray, "height width 3"]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One thing to ask.

    Attributes:
        text: what the user says; the n-th "<image>" in it is where the n-th image goes. Without
            any, the images are put in front, each on a line of its own.
        images: files, or uint8 RGB pixels of any size.
    """

    text: str
    images: tuple[Path | Pixels, ...] = ()


@dataclasses.dataclass(frozen=True)
class ReadPrompt:
    """A prompt, ready to be batched.

    Attributes:
        example: its tokens, the assistant's open header included.
        images: uint8 pixels at the tower's size.
        limit: tokens that the answer may have.
    """

    example: Example
    images: tuple[Pixels, ...]
    limit: int


def read_prompt(
    prompt: Prompt,
    where: str,
    template: Template,
    tokenizer: Tokenizer,
    num_visual_tokens: int,
    loader: ImageLoader,
    layout: ViewLayout | None = None,
) -> tuple[Example, tuple[Pixels, ...]]:
    """Returns the tokens of a prompt and the pixels of its images, each view on its own.

    Args:
        prompt: what is asked.
        where: what to call the prompt in messages.
        template: how turns are written.
        tokenizer: for the text.
        num_visual_tokens: P.
        loader: knows size and geometry of the tower's images; its folder is not used.
        layout: of images that are shown as several views; None: none is.

    Raises:
        UserError: tags and images differ in number, or an image cannot be read.
    """
    text, num_tags = prompt.text, prompt.text.count(IMAGE_TAG)
    if num_tags == 0:
        text = f"{IMAGE_TAG}\n" * len(prompt.images) + text
    elif num_tags != len(prompt.images):
        raise UserError(
            f"{where}: its text has {num_tags} {IMAGE_TAG} tag(s), but it comes with "
            f"{len(prompt.images)} image(s); give one image per tag, in order, or leave out all "
            "tags to put the images in front"
        )
    names = [f"image {number}" for number in range(1, len(prompt.images) + 1)]
    turns = [{"from": "human", "value": text}]
    record = parse_record({"image": names, "conversations": turns}, where, 1)
    pictures = {
        name: _picture(image, where) for name, image in zip(names, prompt.images, strict=True)
    }
    example = render_prompt(read_conversation(record), template, tokenizer, num_visual_tokens)
    example = expand_images(example, layout, lambda name: pictures[name].size)
    pixels: list[Pixels] = []
    for name, views in itertools.groupby(example.images, whole):
        pixels += loader.fit_all(list(views), pictures[name], f"{where}: {name}")
    return example, tuple(pixels)


def _picture(image: Path | Pixels, where: str) -> Image.Image:
    """Returns an RGB image of any size."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(
                f"{where}: an image is an array of {image.dtype} {list(image.shape)}; expected "
                "uint8 RGB pixels [height, width, 3]"
            )
        return Image.fromarray(image)
    path = Path(image)
    if not path.is_file():
        what = "is no plain file" if path.exists() else "does not exist"
        raise UserError(f"{where}: image {str(path)!r} {what}; name an image file")
    data = image_files.read_file(str(path.absolute()), "/", where)
    return image_files.decode(data, f"{where}: image {str(path)!r}")


def plan_batches(prompts: Sequence[ReadPrompt], max_rows: int) -> list[list[int]]:
    """Returns which prompts share a batch, as indices; at most `max_rows` each.

    Prompts share a batch if they round up to the same length and number of images. Batches of such
    a group are as equal as can be, so that they round up to the same number of rows, too.
    """
    groups: dict[tuple[int, int], list[int]] = collections.defaultdict(list)
    for index, prompt in enumerate(prompts):
        groups[_sizes([prompt])].append(index)
    batches = []
    for _, group in sorted(groups.items()):
        count = -(-len(group) // max_rows)
        bounds = [len(group) * i // count for i in range(count + 1)]
        batches += [group[a:b] for a, b in itertools.pairwise(bounds)]
    return batches


def create_batch(
    prompts: Sequence[ReadPrompt], image_size: int, has_mixtures: bool = False
) -> PromptBatch:
    """Returns prompts as arrays of a size from the short list; the rows added have limit 0.

    Args:
        prompts: at least one.
        image_size: pixels per side of the tower's images.
        has_mixtures: whether the batch says what each visual token is mixed of.
    """
    rows = round_up(len(prompts), 1)
    length, num_images = _sizes(prompts)
    batch = PromptBatch(
        tokens=np.zeros((rows, length), np.int32),
        visual_index=np.full((rows, length), -1, np.int32),
        lengths=np.ones(rows, np.int32),
        limits=np.zeros(rows, np.int32),
        images=np.zeros((rows, num_images, image_size, image_size, 3), np.uint8),
    )
    for row, prompt in enumerate(prompts):
        count = len(prompt.example)
        batch.tokens[row, length - count :] = prompt.example.tokens
        batch.visual_index[row, length - count :] = prompt.example.visual_index
        batch.lengths[row], batch.limits[row] = count, prompt.limit
        for slot, pixels in enumerate(prompt.images):
            batch.images[row, slot] = pixels
    return batch._replace(mixture=_mixtures(prompts, rows, length)) if has_mixtures else batch


def _mixtures(
    prompts: Sequence[ReadPrompt], rows: int, length: int
) -> tuple[Int[np.ndarray, "B T 4"], Float[np.ndarray, "B T 4"]]:
    """Returns what the visual tokens of prompts are mixed of, padded on the left."""
    sources, weights = (
        np.full((rows, length, 4), -1, np.int32),
        np.zeros((rows, length, 4), np.float32),
    )
    for row, prompt in enumerate(prompts):
        here = slice(length - len(prompt.example), length)
        sources[row, here], weights[row, here] = prompt.example.sources
    return sources, weights


def round_up(count: int, smallest: int) -> int:
    """Returns the least of smallest * (1, 1.5, 2, 3, 4, 6, 8, ...) that is not below `count`.

    At most a third of it is padding, and there are two sizes per doubling.
    """
    size = smallest
    while size < count:
        if size + size // 2 >= count:
            return size + size // 2
        size *= 2
    return size


def _sizes(prompts: Iterable[ReadPrompt]) -> tuple[int, int]:
    """Returns (length, images per row) that all prompts fit into."""
    lengths, images = zip(*((len(p.example), len(p.images)) for p in prompts), strict=True)
    num_images = max(images)
    return round_up(max(lengths), _SMALLEST_LENGTH), round_up(num_images, 1) if num_images else 0
