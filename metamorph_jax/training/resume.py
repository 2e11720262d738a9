"""Where a run begins: at step 0, or at the newest checkpoint that verifies.

Order: `--resume=STEP` names a checkpoint; `must` and `auto` take the newest good one; without any,
`must` fails and `auto` starts from scratch; `never` refuses a folder that already has checkpoints,
so that nothing is ever overwritten.

A run goes on only with the recipe and the data that it began with; but the weights of a VPiT
stage's sources may change, which the data plan takes up from that step on (data/plan.py). Naming a
step is the way to branch off with another recipe.
"""

import dataclasses
import json
import re

from metamorph_jax.checkpoints.metadata import CheckpointMeta
from metamorph_jax.checkpoints.store import CheckpointStore
from metamorph_jax.config.loading import from_dict, to_text
from metamorph_jax.config.schema_run import RunConfig
from metamorph_jax.data.plan import Section
from metamorph_jax.errors import UserError
from metamorph_jax.training.stages import ResumedData

# What may change from one start of a run to the next without changing what is computed.
_FREE = re.compile(
    r"config\.(name|log_interval_steps|pictures(\..*)?|checkpoint\..*|mesh\..*"
    r"|model\.\w+\.(remat|attention|scan_unroll)"
    r"|stages\.[^.]+\.data\.(num_workers|prefetch_batches|max_bad_fraction|features))"
)
_WEIGHT = re.compile(r"config\.stages\.[^.]+\.data\.sources\.[^.]+\.weight")


@dataclasses.dataclass(frozen=True)
class Start:
    """Where to begin.

    Attributes:
        stage_index: of the first stage to run.
        global_step: steps already done.
        meta: of the checkpoint to restore, or None for a new run.
        is_named: the user named the step, so nothing else will do.
    """

    stage_index: int = 0
    global_step: int = 0
    meta: CheckpointMeta | None = None
    is_named: bool = False

    @property
    def restore_step(self) -> int | None:
        """What to ask the store for: the named step, or None for the newest good one."""
        return self.global_step if self.is_named else None

    def data(self, stage: str) -> ResumedData:
        """Returns where the data of a stage goes on."""
        if self.meta is None or self.meta.stage != stage:
            return ResumedData()
        sections = (
            Section(section["first_step"], tuple(section["weights"]))
            for section in self.meta.mixture
        )
        return ResumedData(self.meta.stage_step, tuple(sections))

    def describe(self) -> str:
        """Returns one phrase for the terminal."""
        if self.meta is None:
            return "a new run"
        return f"resuming at step {self.global_step} ({self.meta.stage} {self.meta.stage_step})"


def find_start(config: RunConfig, store: CheckpointStore, resume: str) -> Start:
    """Returns where the run begins.

    Args:
        config: the recipe as given now; stages are matched by name.
        store: the run's checkpoints.
        resume: `auto`, `never`, `must`, or a global step.

    Raises:
        UserError: nothing to resume where it must, something where it must not, or a checkpoint
            that another model or recipe wrote.
    """
    steps = store.steps()
    if resume == "never":
        if steps:
            raise UserError(
                f"--resume=never: {store.directory} already holds checkpoints at steps "
                f"{steps}; give another --workdir, remove them, or use --resume=auto"
            )
        return Start()
    if not (resume in ("auto", "must") or resume.isdigit()):
        raise UserError(f"--resume={resume}: expected auto, never, must or a step number")
    meta = store.read_meta(int(resume) if resume.isdigit() else None)
    if meta is None:
        if resume == "auto":
            return Start()
        raise UserError(f"--resume={resume}: no checkpoint in {store.directory}; use auto")
    return _start_after(config, meta, is_named=resume.isdigit())


def check_same_data(start: Start, fingerprint: str) -> None:
    """Raises a UserError if the stage's batches are not those that the checkpoint had."""
    if start.meta.data_fingerprint != fingerprint and not start.is_named:
        raise UserError(
            f"the data of stage {start.meta.stage!r} has changed since the checkpoint at step "
            f"{start.global_step}, so the run cannot go on where it stopped; restore the files, "
            f"give another --workdir, or branch off with --resume={start.global_step}"
        )


def _start_after(config: RunConfig, meta: CheckpointMeta, is_named: bool) -> Start:
    """Returns the start that continues the checkpoint described by `meta`."""
    names = [stage.name for stage in config.stages]
    if meta.stage not in names:
        raise UserError(
            f"the checkpoint at step {meta.step} is of stage {meta.stage!r}, but the recipe has "
            f"stages {names}; use the recipe of that run, or another --workdir"
        )
    index = names.index(meta.stage)
    changes = _changes(config, meta, later=names[index + 1 :])
    if changes and not is_named:
        raise UserError(
            f"the recipe differs from that of the checkpoint at step {meta.step}:\n  - "
            + "\n  - ".join(changes)
            + "\nuse the old values, give another --workdir, or branch off with "
            f"--resume={meta.step}"
        )
    if meta.stage_step >= config.stages[index].total_steps:
        index += 1
    return Start(index, meta.step, meta, is_named)


def _changes(config: RunConfig, meta: CheckpointMeta, later: list[str]) -> list[str]:
    """Returns "path: old -> new" for values that matter; stages yet to come are free."""
    old, new = (_lines(recipe) for recipe in (from_dict(json.loads(meta.recipe)), config))
    ahead = tuple(f"config.stages.{name}." for name in later)
    return [
        f"{path}: {old.get(path, 'absent')} -> {new.get(path, 'absent')}"
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
        and not _FREE.fullmatch(path)
        and not (meta.mixture and _WEIGHT.fullmatch(path))
        and not path.startswith(ahead)
    ]


def _lines(config: RunConfig) -> dict[str, str]:
    """Returns {dotted path: value as text}."""
    return dict(line.split(" = ", 1) for line in to_text(config).splitlines())
