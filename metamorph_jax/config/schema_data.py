"""The data of a stage: sources, the shape of their rows, and how images are shown.

Read `schema_run.py` next for the stages.
"""

import dataclasses
import itertools
import re
from typing import Literal

from metamorph_jax.config.schema_model import negative, not_positive
from metamorph_jax.errors import UserError

_MAX_WEIGHT = 1000.0  # the plan of an epoch names each example that often
_GEOMETRY = re.compile(r"square|pad|anyres(_max_[1-9]\d{0,3})?")
_GRID = r"\(([1-9]\d?)x([1-9]\d?)\)"
_GRIDS = re.compile(rf"{_GRID}(,{_GRID})*|{_GRID},\.\.\.,{_GRID}")

Kind = Literal[
    "conversation",
    "image_qa",
    "video_qa",
    "text_to_image",
    "pure_video",
    "visual_thinking",
    "image_to_image",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Records of one format and one kind; docs/formats.md shows each.

    Attributes:
        path: `.json` (a list), `.jsonl`, `.parquet`, `.tar` (WebDataset), `.array_record` (a file,
            or a pattern with `*` for shards), `tfds:NAME/SPLIT`, or `shapes:KIND/SPLIT`.
        kind: what is made of a record: `conversation` takes its turns as they are; the six others
            are MetaMorph's, and also take raw records (a caption, a video, boxes).
        image_root: folder that the records' media paths are relative to, and may not leave; empty:
            the folder of the file.
        weight: how often this source is drawn relative to its size; 2 shows it twice an epoch.
        max_count: at most this many of its records, a random choice; None: all.
        response_format: LLaVA-1.5's request for a form of answer, put behind the first question.
        thinking_image: `visual_thinking` only; the answer shows a `crop` of the region, or the
            whole image with `boxes` drawn.
    """

    path: str
    kind: Kind = "conversation"
    image_root: str = ""
    weight: float = 1.0
    max_count: int | None = None
    response_format: Literal["none", "short_answer", "option_letter", "caption", "region"] = "none"
    thinking_image: Literal["crop", "boxes"] = "crop"

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        found = not_positive(self, "weight", "max_count")
        if not found and self.weight > _MAX_WEIGHT:
            found.append(f"weight={self.weight} must be at most {_MAX_WEIGHT:g}")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Sources and the shape of the rows they are packed into.

    Attributes:
        max_seq_len: T, tokens per row.
        max_images: I, images per row; of `anyres`, views.
        packing: several examples per row (segments never see each other); False: one.
        image_geometry: `square` leaves an image of another shape to the tower's processor (SigLIP's
            squashes it, CLIP's cuts its middle out), `pad` pads to a centred square of the mean
            colour first. `anyres` shows an image that is only read as a small copy and tiles of a
            large one; of `anyres_max_9`, the tiles have at most about the tokens of 9 views.
        image_grid_pinpoints: of `anyres`, the grids of tiles to choose from, columns x rows:
            "(1x2),(2x2)", or "(1x1),...,(6x6)" for all from 1 to 6 by 1 to 6.
        features: folder that `cache_features` wrote; its features are read instead of pixels, for
            stages that leave the tower as it is. Empty: images are encoded as they come.
        max_bad_fraction: of each source's records; more bad ones than this stop the run. Fewer are
            listed in quarantine.jsonl and take part with weight zero.
        num_workers: grain processes that read images and tokenise; 0 uses threads in this process.
        prefetch_batches: batches prepared ahead.
    """

    sources: tuple[SourceConfig, ...]
    max_seq_len: int = 4096
    max_images: int = 16
    packing: bool = True
    image_geometry: str = "square"
    image_grid_pinpoints: str = "(1x2),(2x1),(2x2),(3x1),(1x3)"
    features: str = ""
    max_bad_fraction: float = 0.001
    num_workers: int = 0
    prefetch_batches: int = 2

    def problems(self) -> list[str]:
        """Returns what does not fit together, one sentence each."""
        found = [] if self.sources else ["sources is empty; name at least one data file"]
        found += not_positive(self, "max_seq_len")
        if not 0 <= self.max_bad_fraction <= 1:
            found.append(f"max_bad_fraction={self.max_bad_fraction} must be from 0 to 1")
        found += negative(self, "max_images", "num_workers", "prefetch_batches")
        if not _GEOMETRY.fullmatch(self.image_geometry):
            found.append(
                f"image_geometry={self.image_geometry!r}: expected 'square', 'pad', 'anyres', or "
                "'anyres_max_K' with a number of views such as 9"
            )
        return found + (self._grid_problems() if self.is_anyres else [])

    @property
    def is_anyres(self) -> bool:
        """Whether an image that is only read becomes several views."""
        return self.image_geometry.startswith("anyres")

    @property
    def max_tiles(self) -> int | None:
        """K of `anyres_max_K`; None: no such limit."""
        _, _, limit = self.image_geometry.partition("anyres_max_")
        return int(limit) if limit else None

    def _grid_problems(self) -> list[str]:
        """Returns what is wrong with the grids: they are none, or a row does not hold the views."""
        try:
            grids = parse_grids(self.image_grid_pinpoints)
        except UserError as error:
            return [str(error)]
        columns, rows = max(grids, key=lambda grid: grid[0] * grid[1])
        needed = 1 + columns * rows
        if self.max_images >= needed:
            return []
        return [
            f"max_images={self.max_images}, but an image on the grid ({columns}x{rows}) has "
            f"{needed} views: raise it to {needed} or more"
        ]


def parse_grids(text: str) -> tuple[tuple[int, int], ...]:
    """Returns grids of tiles as (columns, rows), in the order in which they are named.

    Args:
        text: "(1x2),(2x2)", or "(1x1),...,(6x6)": all grids of 1 to 6 by 1 to 6 tiles.

    Raises:
        UserError: the text names no grids.
    """
    bare = "".join(text.split())
    grids = [(int(columns), int(rows)) for columns, rows in re.findall(_GRID, bare)]
    if "..." in bare and len(grids) == 2:
        (columns, rows), (last_columns, last_rows) = grids
        every = itertools.product(range(columns, last_columns + 1), range(rows, last_rows + 1))
        grids = list(every)
    if not _GRIDS.fullmatch(bare) or not grids:
        raise UserError(
            f"pinpoints {text!r} are no grids of tiles; write them like '(1x2),(2x2)', columns x "
            "rows, or as a range like '(1x1),...,(6x6)'"
        )
    return tuple(grids)
