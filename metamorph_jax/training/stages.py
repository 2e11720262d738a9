"""Everything one stage of a recipe needs, made from its section: data, selection, step."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.config.schema_run import RunConfig, StageConfig
from metamorph_jax.data.captions import CaptionData
from metamorph_jax.data.images import pad_color
from metamorph_jax.data.pipeline import TrainingData
from metamorph_jax.data.plan import Section
from metamorph_jax.data.sources import find_files
from metamorph_jax.data.templates import check_template, choose_template
from metamorph_jax.data.tokenizer import Tokenizer
from metamorph_jax.errors import UserError
from metamorph_jax.metrics.progress import Progress
from metamorph_jax.models.init import abstract_params
from metamorph_jax.ops.normalize import PIXEL_STATISTICS
from metamorph_jax.optim.selection import Selection
from metamorph_jax.signals import Stopped
from metamorph_jax.training.initial import check_sources
from metamorph_jax.training.program import (
    check_shapes,
    select_trained,
    stage_optimizer,
    stage_program,
)
from metamorph_jax.training.state import StateLayout

_SILENT_SECS = 3.0


class ResumedData(NamedTuple):
    """Where the data of a stage goes on.

    Attributes:
        step: of the stage.
        sections: of the mixture, as far as the checkpoint knows them.
    """

    step: int = 0
    sections: tuple[Section, ...] = ()


NEW_DATA = ResumedData()


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage, ready to run.

    Attributes:
        config: its section of the recipe.
        first_step: global step at which it begins.
        data: where batches come from; a pure function of (seed, step).
        train_step: jitted (state, batch) -> (state, metrics).
    """

    config: StageConfig
    first_step: int
    data: TrainingData | CaptionData
    selection: Selection
    optimizer: optax.GradientTransformation
    layout: StateLayout
    train_step: Callable

    @property
    def sections(self) -> tuple[Section, ...]:
        """The mixture of its data, by the steps at which it changed."""
        return self.data.plan.sections if isinstance(self.data, TrainingData) else ()


def first_steps(config: RunConfig) -> list[int]:
    """Returns the global step at which each stage begins, and the end of the run."""
    steps = [0]
    for stage in config.stages:
        steps.append(steps[-1] + stage.total_steps)
    return steps


def check_stages(config: RunConfig, mesh: Mesh, tokenizer: Tokenizer) -> None:
    """Raises a UserError for what would stop a later stage, before the first one trains."""
    check_sources(config.model)
    check_vocabulary(config, tokenizer)
    check_template(choose_template(config.tokenizer), tokenizer)
    for stage in config.stages:
        check_shapes(config, stage, mesh.shape)
        selection = select_trained(config, stage, token_rows(stage, tokenizer))
        stage_optimizer(stage, selection, abstract_params(config.model))
        for path in missing_sources(stage):
            raise UserError(f"config.stages.{stage.name}.data: {path} is no file")


def missing_sources(stage: StageConfig) -> list[str]:
    """Returns the data files of a stage that are not there; built-in sources always are."""
    paths = [source.path for source in stage.data.sources]
    return [path for path in paths if ":" not in path and not find_files(path)]


def prepare_stage(
    config: RunConfig,
    index: int,
    mesh: Mesh,
    tokenizer: Tokenizer,
    folder: Path | None = None,
    resumed: ResumedData = NEW_DATA,
    stop: Callable[[], bool] = lambda: False,
) -> Stage:
    """Returns stage `index` of the recipe on `mesh`; allocates no arrays.

    Args:
        config: the recipe.
        index: of the stage.
        mesh: of devices.
        tokenizer: of the run.
        folder: where the stage's data plan is kept; None: nowhere.
        resumed: where its data goes on.
        stop: asked while the data is measured.

    Raises:
        UserError: data is missing or malformed, or answers show images that no head predicts.
        Stopped: `stop` said so.
    """
    stage = config.stages[index]
    program = stage_program(config, stage, mesh, token_rows(stage, tokenizer))
    return Stage(
        config=stage,
        first_step=first_steps(config)[index],
        data=stage_data(config, stage, tokenizer, folder, resumed, stop),
        **program._asdict(),
    )


def stage_data(
    config: RunConfig,
    stage: StageConfig,
    tokenizer: Tokenizer,
    folder: Path | None = None,
    resumed: ResumedData = NEW_DATA,
    stop: Callable[[], bool] = lambda: False,
) -> TrainingData | CaptionData:
    """Returns the source of a stage's batches; see `prepare_stage`."""
    mean, _ = PIXEL_STATISTICS[config.model.vision.family]
    if stage.objective == "contrastive":
        return CaptionData(
            stage.data,
            tokenizer,
            image_size=config.model.vision.image_size,
            seed=config.seed,
            stage_name=stage.name,
            global_batch_size=stage.global_batch_size,
            shift_pixels=stage.shift_pixels,
            pad_color=pad_color(mean),
            processor=config.model.vision.family,
            folder=folder,
            process_index=jax.process_index(),
        )
    progress = DataProgress(f"{stage.name}: reading the data", stop)
    data = TrainingData(
        stage.data,
        tokenizer,
        choose_template(config.tokenizer),
        image_size=config.model.vision.image_size,
        num_visual_tokens=config.model.visual_tokens.num_tokens,
        seed=config.seed,
        stage_name=stage.name,
        global_batch_size=stage.global_batch_size,
        pad_color=pad_color(mean),
        processor=config.model.vision.family,
        folder=folder,
        process_index=jax.process_index(),
        start_step=resumed.step,
        sections=resumed.sections,
        on_progress=progress,
    )
    progress.close()
    check_answer_images(config.model, stage, data.table.total("num_answer_images"))
    progress = DataProgress(f"{stage.name}: planning the rows of all epochs", stop)
    data.plan.prepare(stage.total_steps, progress)
    progress.close()
    return data


class DataProgress:
    """A progress line for what is done with a stage's data ahead; silent if that takes no time.

    Args:
        label: what is done, and for which stage.
        stop: asked at each step of the way.
    """

    def __init__(self, label: str, stop: Callable[[], bool]):
        self._label, self._stop, self._begin = label, stop, time.monotonic()
        self._progress: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        """Takes note of `done` examples of `total`; raises Stopped if that is asked for."""
        if self._stop() and done < total:
            self.close()
            raise Stopped
        if self._progress is None and time.monotonic() - self._begin > _SILENT_SECS:
            label = f"{self._label},"
            self._progress = Progress(total, "example", log_interval=100_000, label=label)
        if self._progress is not None:
            self._progress.update(done, total=total)

    def close(self) -> None:
        """Ends the line."""
        if self._progress is not None:
            self._progress.close()


def token_rows(stage: StageConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the rows of the input embedding that the stage trains alone."""
    if not stage.train_new_token_rows:
        return ()
    return tokenizer.image_token_ids(f"config.stages.{stage.name}.train_new_token_rows")


def check_answer_images(model: ModelConfig, stage: StageConfig, num_images: int) -> None:
    """Raises a UserError if answers of a stage's data show images that the model cannot predict."""
    if model.vision_head == "none" and num_images:
        raise UserError(
            f"config.stages.{stage.name}.data: {num_images} images stand in answers, but "
            "config.model.vision_head is 'none', so that none is predicted; leave these samples "
            "out, or give the model a vision head"
        )


def check_vocabulary(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Raises a UserError if the tokenizer has ids that the model has no embedding for."""
    if tokenizer.vocab_size > config.model.llm.vocab_size:
        raise UserError(
            f"config.model.llm.vocab_size={config.model.llm.vocab_size}, but the tokenizer in "
            f"{config.tokenizer.path} has {tokenizer.vocab_size} ids; set "
            f"--config.model.llm.vocab_size={tokenizer.vocab_size}, or use the model's tokenizer"
        )


def describe(data: TrainingData | CaptionData) -> str:
    """Returns one line on what a stage trains on."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in data.describe().items())
