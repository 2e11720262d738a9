"""MetaMorph's configuration: a Llama decoder, a SigLIP tower, and what joins them.

The model itself is in `modeling_metamorph.py`.
"""

import re

from transformers import LlamaConfig, PretrainedConfig, SiglipVisionConfig

_MLP_GELU = re.compile(r"mlp([1-9]\d*)x_gelu")
_VISION_HEAD_LINEARS = {"linear": 1, "mlp": 2, "mlp2x_gelu": 3}
_REDUCTIONS = ("none", "interpolation")


class MetaMorphConfig(PretrainedConfig):
    """What a MetaMorph model is made of.

    Args:
        text_config: of the decoder, as `LlamaConfig` or its dict. Rotary parameters are read in
            both spellings, `rope_theta` with `rope_scaling`, and `rope_parameters`.
        vision_config: of the tower, as `SiglipVisionConfig` or its dict.
        image_token_id: stands in `input_ids` where a visual token goes. It is never embedded and
            never said, so it may lie outside of the vocabulary. This one and the next two come
            from the tokenizer and have no usual value.
        image_start_token_id: announces an image.
        image_end_token_id: follows an image.
        num_image_tokens: visual tokens of one image.
        image_token_reduction: how the tower's tokens become so many: `none`, or `interpolation`
            (bilinear, without antialiasing).
        normalize_vision: visual tokens have L2 norm 1.
        vision_feature_layer: index into the tower's hidden states, of which 0 is the embedding;
            -1 is the output of the last block, before the post-layernorm. Later blocks do not
            exist.
        projector_type: `linear`, or `mlpNx_gelu` with N linear layers.
        projector_hidden_act: between the layers of projector and vision head; "gelu" is exact.
        vision_head_type: `linear`, `mlp` (two linear layers) or `mlp2x_gelu` (three).
        tie_word_embeddings: of the decoder; None: as `text_config` says.
        **kwargs: of `PretrainedConfig`.

    Raises:
        ValueError: A value is unknown or does not fit the others.
    """

    model_type = "metamorph"
    sub_configs = {"text_config": LlamaConfig, "vision_config": SiglipVisionConfig}  # noqa: RUF012

    def __init__(
        self,
        text_config=None,
        vision_config=None,
        image_token_id=None,
        image_start_token_id=None,
        image_end_token_id=None,
        num_image_tokens=64,
        image_token_reduction="interpolation",
        normalize_vision=True,
        vision_feature_layer=-1,
        projector_type="mlp2x_gelu",
        projector_hidden_act="gelu",
        vision_head_type="mlp",
        tie_word_embeddings=None,
        **kwargs,
    ):
        self.text_config = _sub_config(text_config, LlamaConfig)
        self.vision_config = _sub_config(vision_config, SiglipVisionConfig)
        self.image_token_id = image_token_id
        self.image_start_token_id = image_start_token_id
        self.image_end_token_id = image_end_token_id
        self.num_image_tokens = num_image_tokens
        self.image_token_reduction = image_token_reduction
        self.normalize_vision = normalize_vision
        self.vision_feature_layer = vision_feature_layer
        self.projector_type = projector_type
        self.projector_hidden_act = projector_hidden_act
        self.vision_head_type = vision_head_type
        self._check()
        if tie_word_embeddings is None:
            tie_word_embeddings = self.text_config.tie_word_embeddings
        # Releases differ in which of the two they read.
        self.text_config.tie_word_embeddings = tie_word_embeddings
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    def _check(self):
        """Raises a ValueError that names what is wrong."""
        grid = self.vision_config.image_size // self.vision_config.patch_size
        if self.image_token_reduction not in _REDUCTIONS:
            known = " or ".join(map(repr, _REDUCTIONS))
            raise ValueError(
                f"image_token_reduction={self.image_token_reduction!r}: expected {known}"
            )
        if self.image_token_reduction == "none" and self.num_image_tokens != grid**2:
            raise ValueError(
                f"num_image_tokens={self.num_image_tokens}, but the tower has {grid**2} tokens and "
                "image_token_reduction is 'none'"
            )
        if round(self.num_image_tokens**0.5) ** 2 != self.num_image_tokens:
            raise ValueError(f"num_image_tokens={self.num_image_tokens} is no square number")
        if self.projector_type != "linear" and not _MLP_GELU.fullmatch(self.projector_type):
            raise ValueError(
                f"projector_type={self.projector_type!r}: expected 'linear' or 'mlpNx_gelu'"
            )
        if self.vision_head_type not in _VISION_HEAD_LINEARS:
            known = ", ".join(map(repr, _VISION_HEAD_LINEARS))
            raise ValueError(f"vision_head_type={self.vision_head_type!r}: expected one of {known}")
        num_blocks = self.vision_config.num_hidden_layers
        if not 0 <= self.num_vision_blocks <= num_blocks:
            raise ValueError(
                f"vision_feature_layer={self.vision_feature_layer} is outside of a tower of "
                f"{num_blocks} blocks"
            )

    @property
    def num_vision_blocks(self):
        """Blocks of the tower that are used."""
        layer = self.vision_feature_layer
        return layer if layer >= 0 else self.vision_config.num_hidden_layers + 1 + layer

    @property
    def projector_widths(self):
        """Widths between the linear layers of the projector, ends included."""
        match = _MLP_GELU.fullmatch(self.projector_type)
        num_linears = int(match.group(1)) if match else 1
        width = self.text_config.hidden_size
        return (self.vision_config.hidden_size,) + (width,) * num_linears

    @property
    def vision_head_widths(self):
        """Widths between the linear layers of the vision head, ends included."""
        num_linears = _VISION_HEAD_LINEARS[self.vision_head_type]
        width = self.text_config.hidden_size
        return (width,) * num_linears + (self.vision_config.hidden_size,)


def _sub_config(values, config_class):
    """Returns a part's configuration; None: the class's defaults."""
    if isinstance(values, PretrainedConfig):
        return values
    return config_class(**_with_old_rope(values or {}))


def _with_old_rope(values):
    """Returns a dict in which `rope_parameters` are spelled as all releases read them."""
    values = dict(values)
    rope = dict(values.pop("rope_parameters", None) or {})
    if not rope:
        return values
    values["rope_theta"] = rope.pop("rope_theta", values.get("rope_theta", 10000.0))
    values["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    return values
