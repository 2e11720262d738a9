"""Records that say the same, share an id, or show the same file under two names.

Only short hashes are kept of each record, so that millions fit into memory; what a finding names is
read again.
"""

from collections.abc import Iterator

import numpy as np

from metamorph_jax.data.lint.examine import Examiner, media_name
from metamorph_jax.data.lint.findings import Finding, short_hash
from metamorph_jax.data.media import media_key
from metamorph_jax.typing import Int, Shaped


def find_duplicates(
    examiner: Examiner, rows: Shaped[np.ndarray, "n"], images: Int[np.ndarray, "images 3"]
) -> Iterator[Finding]:
    """Yields a finding for each record or image that was there before.

    Args:
        examiner: of the records.
        rows: see `examine.ROW`.
        images: see `examine.Examined`.
    """
    where = examiner.records.where
    same = set()
    for later, first in _pairs(rows["content"]):
        same.add(later)
        trouble = f"the same conversation and media as {where(first)}; remove one of them"
        yield Finding(where(later), "duplicate_record", trouble)
    for later, first in _pairs(rows["id"]):
        if later not in same:  # a line that was copied is told of once
            trouble = f"its id is that of {where(first)}, another record; give it its own"
            yield Finding(where(later), "duplicate_id", trouble)
    yield from _image_findings(examiner, images)


def _pairs(hashes: Int[np.ndarray, "n"]) -> Iterator[tuple[int, int]]:
    """Yields (number, first number with the same hash) of all that are not the first; 0: none."""
    order = np.argsort(hashes, kind="stable")
    order = order[np.searchsorted(hashes[order], 1) :]
    is_new = np.diff(hashes[order], prepend=0) != 0
    firsts = order[np.maximum.accumulate(np.where(is_new, np.arange(len(order)), 0))]
    repeats = np.stack([order, firsts], axis=1)[~is_new]
    yield from repeats[np.argsort(repeats[:, 0])].tolist()


def _image_findings(examiner: Examiner, images: Int[np.ndarray, "images 3"]) -> Iterator[Finding]:
    """Yields a finding for each name of a file's content that is not its first."""
    _, firsts = np.unique(images[:, 1:], axis=0, return_index=True)
    names = images[np.sort(firsts)]  # each pair of name and content where it comes first
    for later, first in _pairs(names[:, 2]):
        old, new = (_name(examiner, index, name) for index, name, _ in (names[first], names[later]))
        where = examiner.records.where
        first_where = where(int(names[first][0]))
        trouble = f"image {new} is the same file as {old} of {first_where}"
        yield Finding(where(int(names[later][0])), "duplicate_image", trouble)


def _name(examiner: Examiner, index: int, name: int) -> str:
    """Returns how the image with the hash `name` is called in a record."""
    medias = examiner.conversation(int(index)).images
    return next(media_name(media) for media in medias if short_hash(media_key(media)) == name)
