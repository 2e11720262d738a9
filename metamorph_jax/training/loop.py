"""The training loop: stages in order, each step recorded, state saved, signals obeyed.

The order within a step is fixed: wait for a batch, dispatch the update, record the *previous* step
(so that the device never waits for the host), save if due, look at signals.
"""

import dataclasses
import json
from pathlib import Path

import jax

from metamorph_jax.checkpoints.folders import CHECKPOINTS
from metamorph_jax.checkpoints.metadata import CheckpointMeta, library_versions
from metamorph_jax.checkpoints.naming import tree_fingerprint
from metamorph_jax.checkpoints.store import CheckpointStore
from metamorph_jax.config.loading import to_dict, to_text
from metamorph_jax.config.schema_run import RunConfig
from metamorph_jax.data.tokenizer import load_tokenizer
from metamorph_jax.errors import UserError
from metamorph_jax.metrics.phases import phase
from metamorph_jax.metrics.writers import MetricWriter
from metamorph_jax.sharding.mesh import create_mesh
from metamorph_jax.signals import EXIT_STOPPED, Stopped, StopRequest
from metamorph_jax.training.feature_cache import check_caches
from metamorph_jax.training.initial import create_params, new_token_ids
from metamorph_jax.training.pictures import PicturePainter, check_pictures
from metamorph_jax.training.recorder import Recorder
from metamorph_jax.training.resume import Start, check_same_data, find_start
from metamorph_jax.training.stages import (
    Stage,
    check_stages,
    describe,
    device_batches,
    first_steps,
    prepare_stage,
)
from metamorph_jax.training.state import TrainState, create_state
from metamorph_jax.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Run:
    """What all stages share.

    Attributes:
        last_step: global step at which to stop.
        painter: paints pictures meanwhile.
        new_ids: tokens that pretrained weights do not know.
    """

    config: RunConfig
    mesh: jax.sharding.Mesh
    store: CheckpointStore
    workdir: Path
    last_step: int
    painter: PicturePainter
    new_ids: tuple[int, ...] = ()


def train(
    config: RunConfig, workdir: Path, *, resume: str = "auto", max_steps: int | None = None
) -> int:
    """Runs all stages of a recipe, from the beginning or from the newest checkpoint.

    Args:
        config: the recipe.
        workdir: receives recipe.txt, metrics.jsonl, tb/, checkpoints/.
        resume: `auto` (if there is something), `never`, `must`, or a global step.
        max_steps: stop, and save, when the run as a whole has done this many steps.

    Returns:
        The exit code: 0 when done, 75 when a signal asked to stop and the state was saved.

    Raises:
        UserError: the recipe, its data or the checkpoint do not fit; five updates in a row were
            not finite.
    """
    if jax.process_count() > 1:
        raise UserError("training runs in one process for now; start it on one host")
    mesh = create_mesh(config.mesh)
    tokenizer = load_tokenizer(config.tokenizer.path)
    check_stages(config, mesh, tokenizer)
    check_pictures(config.pictures)
    store = CheckpointStore(workdir / CHECKPOINTS, keep=config.checkpoint.keep)
    start = find_start(config, store, resume)
    workdir.mkdir(parents=True, exist_ok=True)
    ends = first_steps(config)
    last_step = ends[-1] if max_steps is None else min(ends[-1], max_steps)
    painter = PicturePainter(config.pictures, workdir, start.global_step)
    new_ids = new_token_ids(config.model, tokenizer)
    run = Run(config, mesh, store, workdir, last_step, painter, new_ids)
    print(f"{config.name}: {start.describe()}, mesh {dict(mesh.shape)}, {workdir}", flush=True)
    params = None
    with jax.set_mesh(mesh), painter, StopRequest() as stop:
        try:
            for index in range(start.stage_index, len(config.stages)):
                if stop or ends[index] >= last_step:
                    break
                with phase(workdir, f"train/{config.stages[index].name}"):
                    resumed = start.data(config.stages[index].name)
                    folder = workdir / "data" / config.stages[index].name
                    stage = prepare_stage(
                        config, index, mesh, tokenizer, folder, resumed, lambda: bool(stop)
                    )
                    state = _enter_stage(run, index, stage, start, params)
                    params = run_stage(run, stage, state, stop).params
        except Stopped:
            print("stopped while the data was prepared; what is half done begins anew", flush=True)
        finally:
            # Also after an error, and still deaf to signals: what is being saved is good.
            store.wait()
        painter.finish(stop)
    return EXIT_STOPPED if stop else 0


def run_stage(run: Run, stage: Stage, state: TrainState, stop: StopRequest) -> TrainState:
    """Returns the state after the stage, or after the step at which a stop was asked for."""
    step = int(state.step)
    end = min(stage.config.total_steps, run.last_step - stage.first_step)
    batches = device_batches(stage, run.config.model, step, run.mesh)
    print(f"stage {stage.config.name}: {describe(stage.data)}", flush=True)
    recorder = Recorder(run.config, stage, run.workdir, first=step, last=end)
    recorder.waiting_for("compiling")
    saved = step
    while step < end and not stop:
        try:
            with recorder.timer.waiting():
                batch, work = next(batches)
        except UserError:  # bad data must not lose good work
            recorder.close()
            if saved < step:
                _save(run, stage, state, step)
            raise
        state, metrics = stage.train_step(state, batch)
        step += 1
        recorder.record(step, metrics, work)
        run.painter.poll()
        if step % run.config.checkpoint.interval_steps == 0 and step < end:
            recorder.flush()  # a checkpoint never is ahead of metrics.jsonl
            _save(run, stage, state, step)
            saved = step
    recorder.close()
    if saved < step:
        _save(run, stage, state, step)
    if stop:
        run.store.wait()
        done = stage.first_step + step
        print(f"stopped at step {done}, {'saved' if done else 'nothing to save'}", flush=True)
    return state


def _enter_stage(
    run: Run, index: int, stage: Stage, start: Start, params: PyTree | None
) -> TrainState:
    """Returns the state a stage begins with: resumed, carried over, or new."""
    if params is not None:
        check_caches(run.config, index, params)
        return create_state(params, stage.selection, stage.optimizer, stage.layout)
    state = None
    if start.meta is None:
        params = create_params(run.config.model, run.config.seed, run.mesh, new_ids=run.new_ids)
    elif start.meta.stage == stage.config.name:
        check_same_data(start, stage.data.fingerprint)
        state = run.store.restore(stage.layout.abstract, start.restore_step)[0]
    else:
        params, _ = run.store.restore_params(stage.layout.abstract.params, start.restore_step)
    check_caches(run.config, index, params if state is None else state.params)
    # Only now is it sure that the run goes on from here.
    run.store.set_aside_after(start.global_step)
    (run.workdir / "recipe.txt").write_text(to_text(run.config) + "\n")
    writer = MetricWriter(run.workdir)
    writer.truncate_after(start.global_step)
    writer.close()
    return state or create_state(params, stage.selection, stage.optimizer, stage.layout)


def _save(run: Run, stage: Stage, state: TrainState, step: int) -> None:
    """Starts an asynchronous save of the state after `step` updates of the stage."""
    meta = CheckpointMeta(
        step=stage.first_step + step,
        stage=stage.config.name,
        stage_step=step,
        stage_total_steps=stage.config.total_steps,
        data_fingerprint=stage.data.fingerprint,
        seed=run.config.seed,
        mixture=[dataclasses.asdict(section) for section in stage.sections],
        recipe=json.dumps(to_dict(run.config)),
        model_fingerprint=tree_fingerprint(state.params),
        versions=library_versions(),
    )
    run.store.save(meta.step, state, meta)
    if stage.config.objective == "vpit" and stage.config.loss.visual_weight:
        run.painter.saved(meta.step)
