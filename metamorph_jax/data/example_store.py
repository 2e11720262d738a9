"""All examples of a stage, tokenised once and held compactly: five bytes a token.

`pipeline.py` fills it from the sources; rows take examples out of it by number.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from metamorph_jax.data.conversation import Conversation, read_conversation
from metamorph_jax.data.sources import open_source
from metamorph_jax.data.templates import Example
from metamorph_jax.typing import Int

_VISUAL = -1  # stands for a visual token among the stored ids


class ExampleStore:
    """Examples by number, source after source in file order.

    Attributes:
        lengths: tokens of each example, visual ones included.
        num_images: images of each example.
        sizes: examples of each source.
        num_supervised: supervised text tokens of all examples together.
        num_answer_images: images of all examples that are to be predicted.
    """

    def __init__(self, examples_by_source: Iterable[Iterable[Example]]):
        tokens, supervised, paths, answers, lines = [], [], [], [], []
        self._files: list[str] = []
        sizes, lengths, num_images = [], [], []
        for examples in examples_by_source:
            before = len(lengths)
            for example in examples:
                tokens.append(np.where(example.visual_index >= 0, _VISUAL, example.tokens))
                supervised.append(example.supervised)
                paths += example.images
                answers += example.image_is_answer
                file, _, line = example.where.rpartition(":")
                lines.append(int(line))
                lengths.append(len(example))
                num_images.append(len(example.images))
            sizes.append(len(lengths) - before)
            self._files.append(file if sizes[-1] else "")
        self._tokens = np.concatenate(tokens, dtype=np.int32)
        self._supervised = np.concatenate(supervised)
        self._paths, self._answers = paths, np.array(answers, np.bool_)
        self._lines = np.array(lines, np.int64)
        self.lengths = np.array(lengths, np.int64)
        self.num_images = np.array(num_images, np.int64)
        self.sizes: Sequence[int] = tuple(sizes)
        self._token_starts = _starts(self.lengths)
        self._image_starts = _starts(self.num_images)
        self.num_supervised = int(self._supervised.sum())
        self.num_answer_images = int(self._answers.sum())

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        here = slice(self._token_starts[index], self._token_starts[index + 1])
        images = slice(self._image_starts[index], self._image_starts[index + 1])
        tokens = self._tokens[here]
        is_visual = tokens == _VISUAL
        return Example(
            tokens=np.where(is_visual, 0, tokens),
            supervised=self._supervised[here],
            visual_index=np.where(is_visual, np.cumsum(is_visual) - 1, -1).astype(np.int32),
            images=tuple(self._paths[images]),
            image_is_answer=tuple(self._answers[images].tolist()),
            where=self.where(index),
        )

    def source_of(self, index: int) -> int:
        """Returns the number of the source that an example comes from."""
        return int(np.searchsorted(np.cumsum(self.sizes), index, side="right"))

    def where(self, index: int) -> str:
        """Returns FILE:LINE of an example."""
        return f"{self._files[self.source_of(index)]}:{self._lines[index]}"

    @property
    def fingerprint(self) -> str:
        """A hash of everything that reaches the model, except the pixels."""
        digest = hashlib.sha256("\0".join(self._paths).encode())
        for array in (self._tokens, self._supervised, self.lengths, self._answers):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def read_examples(path: str, render: Callable[[Conversation], Example]) -> Iterator[Example]:
    """Yields the examples of one file.

    Raises:
        UserError: the first record that is wrong, by FILE:LINE.
    """
    for record in open_source(path):
        yield render(read_conversation(record))


def _starts(counts: Int[np.ndarray, "count"]) -> Int[np.ndarray, "count_plus_1"]:
    return np.concatenate([[0], np.cumsum(counts)])
