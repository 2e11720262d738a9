"""The feature cache of a stage: written once by the frozen tower, checked before training reads it.

The tower encodes as many images at once as each device does in a training step, so that what is
kept equals what the step would compute bit for bit (`models/encoder.py` says why). Files and
look-up are in `data/feature_store.py` and `data/feature_loader.py`.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.config.schema_run import MeshConfig, RunConfig, StageConfig
from metamorph_jax.data.examples import Records
from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.feature_loader import feature_key
from metamorph_jax.data.feature_store import FeatureStore, FeatureWriter, check_fingerprint
from metamorph_jax.data.images import ImageLoader, Pixels, pad_color
from metamorph_jax.data.media import Media
from metamorph_jax.data.pipeline import image_loaders
from metamorph_jax.data.views import all_views, view_layout
from metamorph_jax.metrics.progress import Progress
from metamorph_jax.models.encoder import TowerEncoder, encoder_fingerprint
from metamorph_jax.ops.normalize import PIXEL_STATISTICS
from metamorph_jax.sharding.mesh import create_mesh
from metamorph_jax.training.dry_run import mesh_sizes
from metamorph_jax.training.initial import create_params
from metamorph_jax.typing import PyTree

_READ_AHEAD = 4  # records per thread


def check_encoder(store: FeatureStore, params: PyTree, model: ModelConfig) -> None:
    """Raises a UserError unless the features are those of a run's own tower.

    Args:
        store: that a stage reads.
        params: of the run, as the stage begins with them.
        model: of the run.
    """
    check_fingerprint(store, encoder_fingerprint(model, params["vision_tower"]))


def check_caches(config: RunConfig, first: int, params: PyTree) -> None:
    """Checks the features of a stage that begins, and of those to come with the same tower.

    Args:
        config: the recipe.
        first: number of the stage that begins.
        params: that it begins with.

    Raises:
        UserError: a cache is missing, damaged, or of another encoder.
    """
    for stage in config.stages[first:]:
        if stage.needs_pixels:
            return  # it may train the tower; whoever comes then is checked then
        if stage.data.features:
            check_encoder(FeatureStore(stage.data.features), params, config.model)


def initial_tower(config: RunConfig) -> PyTree:
    """Returns the tower that a new run of the recipe begins with."""
    mesh = create_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    return create_params(config.model, config.seed, mesh, part="vision_tower")["vision_tower"]


def images_per_call(config: RunConfig, stage: StageConfig) -> int:
    """Returns how many images each device encodes at once in a training step."""
    mesh = mesh_sizes(config)
    rows = stage.global_batch_size // (mesh["data"] * mesh["fsdp"] * stage.grad_accum_steps)
    images = max(1, rows) * stage.data.max_images
    return images // mesh["context"] if images % mesh["context"] == 0 else images


@dataclasses.dataclass
class Tally:
    """What came of a stage's records.

    Attributes:
        records: looked at.
        encoded: images that were new.
        bad: messages of records that training would leave out, too.
    """

    records: int = 0
    encoded: int = 0
    bad: list[str] = dataclasses.field(default_factory=list)


class _Work(NamedTuple):
    """One record: its keys that were new when it was read, with pixels; or what is wrong."""

    images: dict[bytes, Pixels]
    problem: str = ""


def write_features(
    config: RunConfig,
    stage: StageConfig,
    tower: PyTree,
    writer: FeatureWriter,
    stop: Callable[[], bool] = lambda: False,
) -> Tally:
    """Encodes every image that the samples of a stage show and that the writer has not.

    Args:
        config: the recipe.
        stage: one of its stages.
        tower: the part "vision_tower" of the parameters.
        writer: of the cache; what was computed before stays.
        stop: asked after each record; True ends early.

    Raises:
        UserError: a source cannot be used.
    """
    # Partitioned only if the run is: the compiler keeps other roundings of bfloat16 then.
    is_partitioned = max(mesh_sizes(config).values()) > 1
    mesh = create_mesh(MeshConfig(data=-1, fsdp=1)) if is_partitioned else None
    encoder = TowerEncoder(config.model, tower, images_per_call(config, stage), mesh)
    records = Records(stage.data, f"{config.seed}/{stage.name}")  # as in TrainingData
    progress = Progress(len(records), "record", log_interval=1000, label=stage.name)
    progress.waiting_for("compiling")
    tally, waiting = Tally(), {}  # a dict keeps the order

    def new_images() -> Iterator[Pixels]:
        for work in _read_ahead(config, stage, records, writer):
            tally.records += 1
            if work.problem:
                tally.bad.append(work.problem)
            for key, pixels in work.images.items():
                if key not in waiting and key not in writer:
                    waiting[key] = None
                    yield pixels
            progress.update(tally.records)
            if stop():
                return

    for features in encoder.stream(new_images()):
        key = next(iter(waiting))
        writer.add(key, features)
        del waiting[key]
        tally.encoded += 1
    progress.close()
    return tally


def _read_ahead(
    config: RunConfig, stage: StageConfig, records: Records, writer: FeatureWriter
) -> Iterator[_Work]:
    """Yields what each record needs, in order, read by as many threads as there are cores."""
    vision = config.model.vision
    color = pad_color(PIXEL_STATISTICS[vision.family][0])
    loaders = image_loaders(stage.data, vision.image_size, color, vision.family)
    layout = view_layout(stage.data, vision.image_size, config.model.visual_tokens.num_tokens)

    def read(index: int) -> _Work:
        loader, where = loaders[records.source_of(index)], records.where(index)
        try:
            conversation = records.conversation(index, loader, stage.data.max_images)
            size_of = functools.partial(loader.image_size, where=where)
            medias = all_views(conversation, layout, size_of)
            return _Work(_new_images(medias, loader, where, writer))
        except BadSample as error:
            return _Work({}, str(error))

    num_threads = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        ahead: collections.deque[concurrent.futures.Future[_Work]] = collections.deque()
        try:
            for index in range(len(records)):
                ahead.append(pool.submit(read, index))
                if len(ahead) >= _READ_AHEAD * num_threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _new_images(
    medias: Sequence[Media], loader: ImageLoader, where: str, writer: FeatureWriter
) -> dict[bytes, Pixels]:
    """Returns the pixels of media that the writer has not, by key."""
    keys = {feature_key(media, loader, where): media for media in medias}
    new = {key: media for key, media in keys.items() if key not in writer}
    return dict(zip(new, loader.load_all(list(new.values()), where), strict=True))
