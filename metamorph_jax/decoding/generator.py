"""A checkpoint that answers prompts: the door of this room.

`loop.py` is what runs on the device; here prompts are read, batched, run, and put back in order.
"""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from metamorph_jax.checkpoints.folders import find_checkpoints, folder_of, no_checkpoint
from metamorph_jax.checkpoints.store import CheckpointStore
from metamorph_jax.config.loading import from_dict
from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.config.schema_run import MeshConfig, RunConfig
from metamorph_jax.data.images import ImageLoader, pad_color
from metamorph_jax.data.templates import Template, check_template, choose_template, stop_ids
from metamorph_jax.data.tokenizer import Tokenizer, load_tokenizer
from metamorph_jax.data.views import ViewLayout, view_layout
from metamorph_jax.decoding.answers import Answer as Answer
from metamorph_jax.decoding.answers import create_answer
from metamorph_jax.decoding.loop import Rules, decode_prompts
from metamorph_jax.decoding.prompts import Prompt as Prompt
from metamorph_jax.decoding.prompts import (
    ReadPrompt,
    create_batch,
    plan_batches,
    read_prompt,
    round_up,
)
from metamorph_jax.decoding.sampling import create_choice
from metamorph_jax.errors import UserError
from metamorph_jax.models.init import abstract_params, logical_axes
from metamorph_jax.models.stack import unstack_blocks
from metamorph_jax.ops.normalize import PIXEL_STATISTICS
from metamorph_jax.sharding.mesh import create_mesh
from metamorph_jax.sharding.rules import specs_for
from metamorph_jax.typing import PyTree

_SMALLEST_BUDGET = 32  # steps


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to answer.

    Attributes:
        max_new_tokens: text and visual tokens together; an image that does not fit is not begun.
        temperature: 0 is greedy. Visual tokens have no randomness of their own.
        top_p: draw from the likeliest tokens that together have this probability.
        seed: of the draws; the n-th prompt of a call draws alike, whatever the other prompts.
        max_images: pictures per answer.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_images: int = 4

    def check(self) -> None:
        """Raises a UserError if a value is out of range."""
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens={self.max_new_tokens}: at least 1 was expected")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature={self.temperature}: 0 (greedy) or more was expected")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: above 0 and at most 1 (all) was expected")
        if self.max_images < 0:
            raise UserError(f"max_images={self.max_images}: 0 (no pictures) or more was expected")


class Generator:
    """Answers prompts with text and visual tokens.

    Args:
        config: of the model.
        params: of the model, on the device or devices of `mesh`.
        tokenizer: with no more ids than the model.
        template: how turns are written; the one the model was trained with.
        image_geometry: see `ImageLoader`.
        layout: of images that are shown as several views; None: none is.
        mesh: the devices; None: the default one.
        max_rows: prompts that are answered at once.
        checkpoint: folder that the parameters come from, where there is one.

    Raises:
        UserError: the tokenizer has ids that the model does not know, or lacks tokens that the
            template needs.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: PyTree,
        tokenizer: Tokenizer,
        template: Template,
        *,
        image_geometry: str = "square",
        layout: ViewLayout | None = None,
        mesh: Mesh | None = None,
        max_rows: int = 64,
        checkpoint: Path | None = None,
    ):
        if tokenizer.vocab_size > config.llm.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} ids, but model.llm.vocab_size is "
                f"{config.llm.vocab_size}; use the tokenizer that the model was trained with"
            )
        self.config, self.params = config, unstack_blocks(params)
        self.image_geometry, self.checkpoint = image_geometry, checkpoint
        check_template(template, tokenizer)
        self.tokenizer, self.template = tokenizer, template
        self._stop_ids = stop_ids(template, tokenizer)
        mean, _ = PIXEL_STATISTICS[config.vision.family]
        size = config.vision.image_size
        family = config.vision.family
        self._loader = ImageLoader("", size, image_geometry, pad_color(mean), family)
        self._layout = layout
        self._mesh, self._max_rows = mesh, max_rows
        self._allowed = _allowed_ids(tokenizer, self._stop_ids, config.llm.padded_vocab_size)

    @classmethod
    def load(cls, path: str | Path, step: int | None = None, *, num_devices: int = 1) -> Self:
        """Returns the generator of a run.

        Parameters come in the dtype of the model's activations, which halves them for bfloat16.

        Args:
            path: a run's folder, its `checkpoints`, or one checkpoint (then `step` is its own).
            step: global step; None: the newest checkpoint that verifies.
            num_devices: each matrix product is split over the first so many devices.

        Raises:
            UserError: there is no usable checkpoint, or its tokenizer is gone.
        """
        directory, step = find_checkpoints(Path(path), step)
        store = CheckpointStore(directory)
        meta = store.read_meta(step)
        if meta is None:
            raise no_checkpoint(path)
        run = from_dict(json.loads(meta.recipe), RunConfig)
        data = run.last_data
        devices = jax.devices()[:num_devices]
        mesh = create_mesh(MeshConfig(data=1, fsdp=1, tensor=num_devices), devices)
        params, _ = store.restore_params(_placed_params(run.model, mesh), meta.step)
        return cls(
            run.model,
            params,
            load_tokenizer(run.tokenizer.path),
            choose_template(run.tokenizer),
            image_geometry=data.image_geometry,
            layout=view_layout(
                data, run.model.vision.image_size, run.model.visual_tokens.num_tokens
            ),
            mesh=mesh,
            checkpoint=folder_of(directory, meta.step),
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling = Sampling(),
    ) -> list[Answer]:
        """Returns one answer per prompt, in order.

        Raises:
            UserError: a prompt is too long or has more or fewer tags than images, an image cannot
                be read, or a value of `sampling` is out of range.
        """
        sampling.check()
        read = [self._read(prompt, i, sampling) for i, prompt in enumerate(prompts)]
        answers: dict[int, Answer] = {}
        for indices in plan_batches(read, self._max_rows):
            chosen = [read[index] for index in indices]
            answers |= zip(indices, self._answer(chosen, indices, sampling), strict=True)
        return [answers[index] for index in range(len(read))]

    def _read(self, prompt: Prompt, index: int, sampling: Sampling) -> ReadPrompt:
        """Returns a prompt ready to be batched."""
        num_visual, max_len = self.config.visual_tokens.num_tokens, self.config.llm.max_seq_len
        where = f"prompt {index + 1}"
        example, images = read_prompt(
            prompt,
            where,
            self.template,
            self.tokenizer,
            num_visual,
            self._loader,
            self._layout,
        )
        room = max_len - len(example)
        if room < 1:
            raise UserError(
                f"{where} has {len(example)} tokens ({np.count_nonzero(example.image_index >= 0)} "
                f"of them of images), which leaves none of model.llm.max_seq_len={max_len} for the "
                "answer; "
                "shorten it or give fewer images"
            )
        return ReadPrompt(example, images, min(sampling.max_new_tokens, room))

    def _answer(
        self, prompts: Sequence[ReadPrompt], numbers: Sequence[int], sampling: Sampling
    ) -> list[Answer]:
        """Returns the answers to one batch."""
        num_visual = self.config.visual_tokens.num_tokens
        announced = self.template.image_tokens and self.config.vision_head != "none"
        special = self.tokenizer.special
        has_mixtures = self._layout is not None and self._layout.has_mixtures
        batch = create_batch(prompts, self.config.vision.image_size, has_mixtures)
        rules = Rules(
            # Where nothing announces or predicts an image, no id does, and answers are text.
            image_start=special.image_start if announced else -1,
            image_end=special.image_end if announced else -1,
            stop_ids=self._stop_ids,
            max_new_tokens=round_up(int(batch.limits.max()), _SMALLEST_BUDGET),
            max_images=sampling.max_images,
        )
        row_numbers = np.resize(np.asarray(numbers, np.int32), len(batch.lengths))
        arguments = (sampling.temperature, sampling.top_p, sampling.seed)
        with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
            choice = create_choice(*arguments, jnp.asarray(row_numbers))
            result = decode_prompts(self.config, rules, self.params, batch, self._allowed, choice)
        steps, visual, followed = jax.device_get(tuple(result))
        return [
            create_answer(
                steps[i], visual[i], bool(followed[i]), self.tokenizer, self._stop_ids, num_visual
            )
            for i in range(len(prompts))
        ]


def _placed_params(config: ModelConfig, mesh: Mesh) -> PyTree:
    """Returns what to restore: shapes, shardings, and the dtype of activations.

    The tower keeps the dtype it was trained in: a visualizer knows its encoder by these bytes.
    """
    shapes = abstract_params(config)
    shardings = specs_for(logical_axes(config), shapes, mesh)

    def place(path, leaf, sharding):
        dtype = leaf.dtype if path[0].key == "vision_tower" else jnp.dtype(config.dtype)
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, shapes, shardings)


def _allowed_ids(tokenizer: Tokenizer, stop: Sequence[int], padded_vocab_size: int) -> np.ndarray:
    """Returns which ids an answer may contain: text and its end, nothing that templates write.

    The image tokens are not among them; `loop.py` knows when they may stand.
    """
    allowed = np.arange(padded_vocab_size) < tokenizer.vocab_size
    allowed[sorted(tokenizer.control_ids)] = False
    allowed[list(stop)] = True
    return allowed
