"""MetaMorph: a Llama that reads pictures as visual tokens and predicts them.

    pixels --vision_tower, reduction--> visual tokens --multi_modal_projector--> embeddings
    embeddings --language_model--> hidden states --lm_head--> logits
                                                 --vision_head--> the visual token that follows

The tower is in `vision_metamorph.py`, whole answers are in `generation_metamorph.py`.

**Source:** MetaMorph (arXiv 2412.14164).
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)

from .configuration_metamorph import MetaMorphConfig
from .generation_metamorph import MetaMorphGeneration
from .vision_metamorph import MetaMorphVisionTower, resize_tokens

_IDS = ("image_token_id", "image_start_token_id", "image_end_token_id")


@dataclass
class MetaMorphOutput(CausalLMOutputWithPast):
    """Logits, and the hidden states from which they and the visual tokens follow.

    Attributes:
        last_hidden_state: of each position, after the final norm, [B, T, D].
    """

    last_hidden_state: torch.Tensor | None = None


class MetaMorphMlp(nn.Module):
    """Linear layers `linear_1`, `linear_2`, ... with an activation between; one alone: `linear`."""

    def __init__(self, widths, activation):
        super().__init__()
        count = len(widths) - 1
        self.names = ["linear"] if count == 1 else [f"linear_{i + 1}" for i in range(count)]
        self.activation = ACT2FN[activation]
        for i, name in enumerate(self.names):
            self.add_module(name, nn.Linear(widths[i], widths[i + 1]))

    def forward(self, x):
        """Returns the output of the last linear layer."""
        for i, name in enumerate(self.names):
            x = getattr(self, name)(x if i == 0 else self.activation(x))
        return x


class MetaMorphPreTrainedModel(PreTrainedModel):
    """What both models share for loading and saving."""

    config_class = MetaMorphConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlamaDecoderLayer", "MetaMorphVisionBlock"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class MetaMorphModel(MetaMorphPreTrainedModel):
    """Everything but the head for text."""

    def __init__(self, config):
        super().__init__(config)
        if missing := [name for name in _IDS if getattr(config, name) is None]:
            raise ValueError(f"config.json lacks {', '.join(missing)}, which the tokenizer decides")
        if config.vision_config._attn_implementation is None:
            config.vision_config._attn_implementation = config._attn_implementation
        self.language_model = AutoModel.from_config(config.text_config)
        self.vision_tower = MetaMorphVisionTower(config.vision_config, config.num_vision_blocks)
        activation = config.projector_hidden_act
        self.multi_modal_projector = MetaMorphMlp(config.projector_widths, activation)
        self.vision_head = MetaMorphMlp(config.vision_head_widths, activation)
        self.post_init()

    def get_input_embeddings(self):
        """Returns the decoder's table."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        """Replaces the decoder's table."""
        self.language_model.set_input_embeddings(value)

    def encode_images(self, pixel_values):
        """Returns the visual tokens of images, float32 [num_images, P, E].

        Their values are rounded to what the model's dtype can hold.
        """
        if pixel_values.ndim != 4:
            raise ValueError(
                f"pixel_values have shape {list(pixel_values.shape)}; expected all images of the "
                "batch in order, [num_images, 3, height, width]"
            )
        tokens = self.vision_tower(pixel_values)
        if self.config.image_token_reduction == "interpolation":
            tokens = resize_tokens(tokens.float(), self.config.num_image_tokens)
        return self._as_visual_tokens(tokens).to(self.dtype).float()

    def predict_visual(self, hidden):
        """Returns the visual token that follows each hidden state, float32 [..., E]."""
        return self._as_visual_tokens(self.vision_head(hidden))

    def connect(self, visual_tokens):
        """Returns what the decoder reads for visual tokens, [..., D]."""
        return self.multi_modal_projector(visual_tokens.to(self.dtype))

    def _as_visual_tokens(self, x):
        """Returns features, or predictions of them, in the space where they are compared."""
        x = x.float()
        return functional.normalize(x, dim=-1, eps=1e-12) if self.config.normalize_vision else x

    def get_image_features(self, pixel_values, return_dict=True, **kwargs):
        """Returns visual tokens, and as `pooler_output` what the decoder reads, [num_images, P, D].

        With `return_dict=False` the latter comes first of a tuple.
        """
        tokens = self.encode_images(pixel_values)
        embeddings = self.connect(tokens)
        if not return_dict:
            return embeddings, tokens
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=embeddings)

    def embed(self, input_ids, pixel_values=None, image_features=None):
        """Returns the decoder's input, [B, T, D].

        Args:
            input_ids: with `image_token_id` where visual tokens go, [B, T].
            pixel_values: of all images, in order, [num_images, 3, height, width].
            image_features: visual tokens in their place, [num_images, P, E].

        Raises:
            ValueError: There are more or fewer places than visual tokens.
        """
        if pixel_values is not None and image_features is not None:
            raise ValueError("give pixel_values or image_features, not both")
        is_visual = input_ids == self.config.image_token_id
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(is_visual, 0))
        if pixel_values is not None:
            image_features = self.encode_images(pixel_values)
        places, per_image = int(is_visual.sum()), self.config.num_image_tokens
        num_images = 0 if image_features is None else image_features.shape[0]
        if places != num_images * per_image:
            raise ValueError(
                f"input_ids have {places} places for visual tokens, but {num_images} image(s) of "
                f"{per_image} visual tokens each were given; make both with the processor"
            )
        if num_images == 0:
            return embeddings
        visual = self.connect(image_features).to(embeddings)
        return embeddings.masked_scatter(is_visual[..., None], visual)

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        image_features=None,
        return_dict=None,
        **kwargs,
    ):
        """Returns hidden states after the final norm; for the arguments see `embed`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, and not both")
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, pixel_values, image_features)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            return_dict=True,
            **kwargs,
        )
        outputs = BaseModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return outputs if _wants_dict(return_dict, self.config) else outputs.to_tuple()


class MetaMorphForConditionalGeneration(
    MetaMorphGeneration, MetaMorphPreTrainedModel, GenerationMixin
):
    """The whole model; `generate` answers in text, `generate_multimodal` in text and pictures."""

    _tied_weights_keys = {  # noqa: RUF012
        "lm_head.weight": "model.language_model.embed_tokens.weight"
    }

    def __init__(self, config):
        super().__init__(config)
        self.model = MetaMorphModel(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        """Returns the decoder's table."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        """Replaces the decoder's table."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self):
        """Returns the head for text."""
        return self.lm_head

    def set_output_embeddings(self, value):
        """Replaces the head for text."""
        self.lm_head = value

    def get_image_features(self, pixel_values, **kwargs):
        """See `MetaMorphModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        image_features=None,
        logits_to_keep=0,
        return_dict=None,
        **kwargs,
    ):
        """Returns logits of the last `logits_to_keep` positions (0: all), and hidden states.

        For the other arguments see `MetaMorphModel.embed`.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            image_features=image_features,
            return_dict=True,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        outputs = MetaMorphOutput(
            logits=self.lm_head(hidden[:, keep]),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            last_hidden_state=hidden,
        )
        return outputs if _wants_dict(return_dict, self.config) else outputs.to_tuple()


def _wants_dict(return_dict, config):
    """Returns whether outputs are wanted by name."""
    return config.return_dict if return_dict is None else return_dict
