"""The training loop: stages in order, each step recorded, state saved, signals obeyed.

The order within a step is fixed: wait for a batch, dispatch the update, record the *previous* step
(so that the device never waits for the host), save if due, look at signals. Processes of a run do
the same in the same order: what only one of them knows, that it was asked to stop or that its data
is bad, they agree upon (runtime/agreement.py).
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
from metamorph_jax.data.death_journal import being_decoded
from metamorph_jax.data.tokenizer import Tokenizer, load_tokenizer
from metamorph_jax.metrics.phases import phase
from metamorph_jax.metrics.writers import MetricWriter
from metamorph_jax.runtime import compiles
from metamorph_jax.runtime.agreement import (
    Vote,
    any_stop,
    check_same,
    check_shared,
    first_then_others,
    is_first,
    together,
)
from metamorph_jax.runtime.joining import is_lost, leave
from metamorph_jax.runtime.profile import Profiler
from metamorph_jax.runtime.stall import StallWatch
from metamorph_jax.sharding.mesh import create_mesh
from metamorph_jax.signals import EXIT_STOPPED, Stopped, StopRequest
from metamorph_jax.training.batches import DeviceBatches
from metamorph_jax.training.feature_cache import check_caches
from metamorph_jax.training.initial import create_params, new_token_ids
from metamorph_jax.training.pictures import PicturePainter, check_pictures
from metamorph_jax.training.recorder import Recorder
from metamorph_jax.training.resume import Start, check_same_data, find_start
from metamorph_jax.training.stages import (
    Stage,
    check_stages,
    describe,
    first_steps,
    prepare_stage,
)
from metamorph_jax.training.state import TrainState, create_state
from metamorph_jax.training.step import attention_backend
from metamorph_jax.typing import PyTree

_DIFFERENT_ROWS = (
    "share rows of each batch (mesh.context or mesh.tensor runs over processes), but have built "
    "different ones for the next step: files differ between the hosts, or were changed, or could "
    "be read by one of them only (each lists what it could not read in WORKDIR/data/STAGE, "
    "quarantine*.jsonl). The steps before are saved; see to it that all hosts read the same files, "
    "then run the same command again"
)


@dataclasses.dataclass(frozen=True)
class Run:
    """What all stages share.

    Attributes:
        last_step: global step at which to stop.
        painter: paints pictures meanwhile.
        new_ids: tokens that pretrained weights do not know.
        profile: first and last global step to trace.
        watch: tells if the run stands still.
    """

    config: RunConfig
    mesh: jax.sharding.Mesh
    store: CheckpointStore
    workdir: Path
    last_step: int
    painter: PicturePainter
    new_ids: tuple[int, ...] = ()
    profile: tuple[int, int] | None = None
    watch: StallWatch = dataclasses.field(default_factory=lambda: StallWatch(being_decoded))


def train(
    config: RunConfig,
    workdir: Path,
    *,
    resume: str = "auto",
    max_steps: int | None = None,
    profile: tuple[int, int] | None = None,
) -> int:
    """Runs all stages of a recipe, from the beginning or from the newest checkpoint.

    Args:
        config: the recipe.
        workdir: receives recipe.txt, metrics.jsonl, tb/, checkpoints/; all processes see it.
        resume: `auto` (if there is something), `never`, `must`, or a global step.
        max_steps: stop, and save, when the run as a whole has done this many steps.
        profile: first and last step of the run to trace into WORKDIR/profile.

    Returns:
        The exit code: 0 when done, 75 when a signal asked to stop and the state was saved.

    Raises:
        UserError: the recipe, its data or the checkpoint do not fit; five updates in a row were
            not finite.
    """
    compiles.listen()
    run, tokenizer, start = _begin(config, workdir, resume, max_steps, profile)
    ends, params = first_steps(config), None
    with jax.set_mesh(run.mesh), run.painter, run.watch, StopRequest() as stop:
        try:
            for index in range(start.stage_index, len(config.stages)):
                if any_stop(stop) or ends[index] >= run.last_step:
                    break
                with phase(workdir, f"train/{config.stages[index].name}", is_written=is_first()):
                    stage = _prepare(run, index, tokenizer, start, stop)
                    state = _enter_stage(run, index, stage, start, params)
                    params = run_stage(run, stage, state, stop).params
        except Stopped:
            _say("stopped while the data was prepared; what is half done begins anew")
        except Exception as error:
            if jax.process_count() > 1 and is_lost(error):
                leave(error)  # what is being saved needs all processes
            raise
        finally:
            # Also after an error, and still deaf to signals: what is being saved is good.
            with run.watch.checkpoint():
                run.store.wait()
        run.painter.finish(stop)
        return EXIT_STOPPED if any_stop(stop) else 0


def _begin(
    config: RunConfig,
    workdir: Path,
    resume: str,
    max_steps: int | None,
    profile: tuple[int, int] | None,
) -> tuple[Run, Tokenizer, Start]:
    """Returns what `train` needs, having checked what can be checked before anything is done."""
    mesh = create_mesh(config.mesh)
    tokenizer = together("read the tokenizer", lambda: load_tokenizer(config.tokenizer.path))
    together("use the recipe", lambda: check_stages(config, mesh, tokenizer))
    together("paint pictures", lambda: check_pictures(config.pictures))
    store = CheckpointStore(workdir / CHECKPOINTS, keep=config.checkpoint.keep)
    check_same("recipes", to_text(config))
    check_shared(workdir)
    start = find_start(config, store, resume)
    workdir.mkdir(parents=True, exist_ok=True)
    end = first_steps(config)[-1]
    last_step = end if max_steps is None else min(end, max_steps)
    new_ids = new_token_ids(config.model, tokenizer)
    painter = PicturePainter(config.pictures if is_first() else None, workdir, start.global_step)
    run = Run(config, mesh, store, workdir, last_step, painter, new_ids, profile)
    several = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    _say(f"{config.name}: {start.describe()}, mesh {dict(mesh.shape)}{several}, {workdir}")
    return run, tokenizer, start


def _prepare(run: Run, index: int, tokenizer: Tokenizer, start: Start, stop: StopRequest) -> Stage:
    """Returns a stage; its data is measured and planned by the first process, for all."""
    name = run.config.stages[index].name
    folder, resumed = run.workdir / "data" / name, start.data(name)
    stage = first_then_others(
        f"prepare stage {name}",
        lambda: prepare_stage(
            run.config, index, run.mesh, tokenizer, folder, resumed, lambda: bool(stop)
        ),
    )
    check_same(f"the data of stage {name}", stage.data.fingerprint)
    return stage


def run_stage(run: Run, stage: Stage, state: TrainState, stop: StopRequest) -> TrainState:
    """Returns the state after the stage, or after the step at which a stop was asked for."""
    step = int(state.step)
    end = min(stage.config.total_steps, run.last_step - stage.first_step)
    batches = DeviceBatches(stage, run.config.model, step, end, run.mesh)
    _say(f"stage {stage.config.name}: {describe(stage.data)}")
    choice = attention_backend(run.config.model, stage.config, run.mesh)
    if choice is not None:
        _say(f"attention: {choice.name} ({choice.reason})")
    run.watch.begin(stage.first_step + step)
    together("read the data", lambda: _check_first(run, batches))
    recorder = Recorder(run.config, stage, run.workdir, first=step, last=end)
    recorder.waiting_for("compiling")
    profiler = Profiler(run.profile if is_first() else None, run.workdir / "profile")
    vote, again = Vote(run.mesh, batches.shared.groups), compiles.StepWatch(stage.train_step)
    vote(False, batches.shared.marks)  # so that the first batch is compared before it is used
    saved = step
    while step < end and not vote(bool(stop) or batches.is_ending, batches.shared.marks):
        with recorder.timer.waiting(), run.watch.data():
            taken = batches.take()
        if taken is None:
            break  # the data is bad, which must not lose good work
        batch, work = taken
        profiler.before(stage.first_step + step + 1)
        state, metrics = stage.train_step(state, batch)
        again.after_call(batch)
        step += 1
        profiler.after(stage.first_step + step, metrics)
        recorder.record(step, metrics, work)
        run.watch.done(stage.first_step + step)
        run.painter.poll()
        if step % run.config.checkpoint.interval_steps == 0 and step < end:
            recorder.flush()  # a checkpoint never is ahead of metrics.jsonl
            _save(run, stage, state, step)
            saved = step
    profiler.close()
    recorder.close()
    if saved < step:
        _save(run, stage, state, step)
    together("read the data", batches.check)
    vote.check(_DIFFERENT_ROWS)
    run.watch.pause()
    if any_stop(stop):
        with run.watch.checkpoint():
            run.store.wait()
        done = stage.first_step + step
        _say(f"stopped at step {done}, {'saved' if done else 'nothing to save'}")
    return state


def _check_first(run: Run, batches: DeviceBatches) -> None:
    with run.watch.data():
        batches.check()


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
    if is_first():
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
    with run.watch.checkpoint():
        run.store.save(meta.step, state, meta)
    if stage.config.objective == "vpit" and stage.config.loss.visual_weight:
        run.painter.saved(meta.step)


def _say(text: str) -> None:
    """Prints a line, once per run."""
    if is_first():
        print(text, flush=True)
