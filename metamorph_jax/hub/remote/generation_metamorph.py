"""Answers: in text alone by `generate`, in text and pictures by `generate_multimodal`.

The rules of a mixed answer, whatever the model says:

    - the id that announces an image is followed by exactly P visual tokens, then by the id that
      ends it; inside an image no text, and so no stop token, is looked at
    - elsewhere the id that ends an image does not occur
    - an image is begun only if all of it still fits, and only `max_images` times
    - an answer ends after a stop token, or at its limit
"""

from typing import NamedTuple

import torch
from transformers import DynamicCache

_TEXT, _END_DUE = -1, 0  # modes, beside the number of visual tokens still to come


class MixedAnswers(NamedTuple):
    """What `generate_multimodal` returns.

    Attributes:
        sequences: prompts and answers, [B, T]: `image_token_id` where a visual token is, the pad
            id behind an answer that ended.
        visual_tokens: per row, those of the pictures in its answer, float32 [pictures, P, E].
    """

    sequences: torch.Tensor
    visual_tokens: list


class MetaMorphGeneration:
    """The part of `MetaMorphForConditionalGeneration` that answers, on top of `GenerationMixin`."""

    def generate(self, inputs=None, generation_config=None, **kwargs):
        """Returns what `GenerationMixin.generate` returns, with answers of text alone.

        Ids of images are suppressed: a picture is made of visual tokens, which no id spells.
        """
        chosen = generation_config or self.generation_config
        asked = kwargs.pop("suppress_tokens", None) or chosen.suppress_tokens or ()
        kwargs["suppress_tokens"] = sorted({*asked, *self._image_ids()})
        return super().generate(inputs, generation_config, **kwargs)

    def _image_ids(self):
        """Returns the ids of images that the vocabulary has."""
        config = self.config
        ids = (config.image_start_token_id, config.image_end_token_id, config.image_token_id)
        return [id_ for id_ in ids if id_ < config.text_config.vocab_size]

    def prepare_inputs_for_generation(
        self, input_ids, pixel_values=None, image_features=None, **kwargs
    ):
        """Returns the arguments of `forward`; images are read with the ids they belong to."""
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        ids = inputs.get("input_ids")
        if ids is not None and bool((ids == self.config.image_token_id).any()):
            inputs |= {"pixel_values": pixel_values, "image_features": image_features}
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs
    ):
        """Returns every row `expand_size` times, each time with all of its images."""
        images = {
            name: self._repeat_images(model_kwargs.pop(name), input_ids, expand_size)
            for name in ("pixel_values", "image_features")
            if model_kwargs.get(name) is not None
        }
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, model_kwargs | images

    def _repeat_images(self, images, input_ids, times):
        """Returns the images of every row `times` times, row after row."""
        places = (input_ids == self.config.image_token_id).sum(dim=1)
        rows = images.split((places // self.config.num_image_tokens).tolist())
        return torch.cat([row for own in rows for row in [own] * times])

    @torch.no_grad()
    def generate_multimodal(
        self,
        input_ids,
        pixel_values=None,
        attention_mask=None,
        *,
        image_features=None,
        max_new_tokens=512,
        max_images=4,
        do_sample=False,
        temperature=1.0,
        top_p=1.0,
        generator=None,
    ):
        """Returns `MixedAnswers` to a batch of prompts.

        Args:
            input_ids: prompts, padded on the left, [B, T].
            pixel_values: of all images, in order, [num_images, 3, height, width].
            attention_mask: 0 on the padding; None: there is none.
            image_features: visual tokens in place of `pixel_values`, [num_images, P, E].
            max_new_tokens: text and visual tokens together.
            max_images: pictures per answer.
            do_sample: draw text tokens; visual tokens have no randomness of their own.
            temperature: of the draws.
            top_p: draw from the likeliest tokens that together have this probability.
            generator: of the draws, a `torch.Generator`.

        Raises:
            ValueError: A prompt is not padded on the left, or there is no room for an answer.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        lengths = mask.sum(dim=1)
        limits = self._limits(mask, lengths, max_new_tokens)
        choice = Choice(do_sample, temperature, top_p, generator)
        rows = MixedRows(self, limits, max_images, choice)
        embeddings = self.model.embed(input_ids, pixel_values, image_features)
        positions, cache = (mask.cumsum(dim=1) - 1).clamp(min=0), DynamicCache()
        while True:
            hidden = self.model(
                inputs_embeds=embeddings,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
            rows.emit(hidden)
            if bool(rows.is_done.all()):
                break
            embeddings = rows.last_embeddings()[:, None]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            positions = (lengths + len(rows.steps) - 1)[:, None]
        return MixedAnswers(torch.cat([input_ids, rows.sequences()], dim=1), rows.visual_tokens())

    def _limits(self, mask, lengths, max_new_tokens):
        """Returns the steps that each row may have."""
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens}: at least 1 was expected")
        if not bool(mask[:, -1].all()):
            raise ValueError("prompts are padded on the right; answers follow only left padding")
        longest = self.config.text_config.max_position_embeddings
        if int(lengths.max()) >= longest:
            raise ValueError(
                f"a prompt has {int(lengths.max())} tokens, which leaves none of the model's "
                f"{longest} for the answer; shorten it or give fewer images"
            )
        return (longest - lengths).clamp(max=max_new_tokens)


class Choice(NamedTuple):
    """How a text token follows from logits.

    Attributes:
        do_sample: draw; else the most likely token.
        temperature: logits are divided by this.
        top_p: see `generate_multimodal`.
        generator: of the draws.
    """

    do_sample: bool
    temperature: float
    top_p: float
    generator: torch.Generator | None

    def __call__(self, logits):
        """Returns one id per row of logits, in which -inf is not allowed."""
        if not self.do_sample:
            return logits.argmax(dim=-1)
        probabilities = (logits / self.temperature).softmax(dim=-1)
        if self.top_p < 1:
            sorted_, order = probabilities.sort(dim=-1, descending=True, stable=True)
            is_out = sorted_.cumsum(dim=-1) - sorted_ >= self.top_p
            is_out[:, 0] = False
            is_out = torch.zeros_like(is_out).scatter(1, order, is_out)
            probabilities = probabilities.masked_fill(is_out, 0)
        return torch.multinomial(probabilities, 1, generator=self.generator)[:, 0]


class MixedRows:
    """The rows of a batch of answers, each in a mode of its own.

    Attributes:
        is_done: per row, whether its answer is complete.
        steps: of all rows, what each step emitted: ids, [B].
    """

    def __init__(self, model, limits, max_images, choice):
        self._model, self._limits, self._choice = model, limits, choice
        self._max_images, self._config = max_images, model.config
        self.is_done = limits <= 0
        self.steps, self._visual, self._was_visual = [], [], []
        self._countdown = torch.full_like(limits, _TEXT)
        self._num_images = torch.zeros_like(limits)
        rules, vocab_size = model.generation_config, model.config.text_config.vocab_size
        device = limits.device
        stop, pad = rules.eos_token_id, rules.pad_token_id
        stop = [stop] if isinstance(stop, int) else list(stop or ())
        self._stop = torch.tensor(stop, dtype=torch.long, device=device)
        self._pad = pad if pad is not None else (stop or [0])[0]
        forbidden = {*(rules.suppress_tokens or ()), *model._image_ids()}
        self._is_forbidden = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self._is_forbidden[sorted(forbidden)] = True

    def emit(self, hidden):
        """Writes down what follows from the hidden states [B, D] of the last inputs."""
        in_image, is_active = self._countdown > _END_DUE, ~self.is_done
        visual = self._model.model.predict_visual(hidden)
        text = self._choose_text(hidden)
        begins = (self._countdown == _TEXT) & (text == self._config.image_start_token_id)
        ids = torch.where(in_image, self._config.image_token_id, text)
        self.steps.append(torch.where(is_active, ids, self._pad))
        self._visual.append(visual)
        self._was_visual.append(in_image & is_active)
        next_mode = torch.where(begins, self._config.num_image_tokens, _TEXT)
        self._countdown = torch.where(in_image, self._countdown - 1, next_mode)
        self._num_images = self._num_images + begins.long()
        stops = torch.isin(text, self._stop) & ~in_image
        self.is_done = self.is_done | stops | (len(self.steps) >= self._limits)

    def _choose_text(self, hidden):
        """Returns the text token of each row."""
        logits = self._model.lm_head(hidden).float()
        forbidden = self._is_forbidden.repeat(len(hidden), 1)
        needed = self._config.num_image_tokens + 2
        fits = self._limits - len(self.steps) >= needed
        may_begin = fits & (self._num_images < self._max_images)
        forbidden[:, self._config.image_start_token_id] = ~may_begin
        chosen = self._choice(logits.masked_fill(forbidden, -torch.inf))
        is_end_due = self._countdown == _END_DUE
        return torch.where(is_end_due, self._config.image_end_token_id, chosen)

    def last_embeddings(self):
        """Returns what the decoder reads for the last step, [B, D]."""
        base, is_visual = self._model.model, self._was_visual[-1]
        embeddings = base.get_input_embeddings()(self.steps[-1].masked_fill(is_visual, 0))
        visual = base.connect(self._visual[-1]).to(embeddings)
        return torch.where(is_visual[:, None], visual, embeddings)

    def sequences(self):
        """Returns the ids of all answers, [B, N]."""
        return torch.stack(self.steps, dim=1)

    def visual_tokens(self):
        """Returns per row the visual tokens of its pictures, [pictures, P, E]."""
        visual, chosen = torch.stack(self._visual, dim=1), torch.stack(self._was_visual, dim=1)
        shape = (-1, self._config.num_image_tokens, visual.shape[-1])
        return [row[own].reshape(shape) for row, own in zip(visual, chosen, strict=True)]
