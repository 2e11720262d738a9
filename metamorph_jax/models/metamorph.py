"""MetaMorph: a decoder that reads visual tokens through a connector and predicts them with a head.

    images --encode--> features --connect--> visual embeddings --embed--> --decode--> hidden states
                                                                             |
                                             logits / predict_visual  <------+

Losses are taken elsewhere (`objectives/`), from `hidden` and `features`. Every method is called as
`model.apply({"params": params}, ..., method="name")`; parameters come from `init.py` or `hub/`.

**Source:** MetaMorph (arXiv 2412.14164).
"""

from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.models.cache import KVCache
from metamorph_jax.models.connector import create_connector
from metamorph_jax.models.contrastive import ContrastiveHead, ContrastiveOutput
from metamorph_jax.models.layers import Vector
from metamorph_jax.models.llama import Llama
from metamorph_jax.models.vision_head import create_vision_head
from metamorph_jax.models.vit import VisionTower
from metamorph_jax.ops.gather import gather_tokens, mix_tokens
from metamorph_jax.ops.normalize import l2_normalize, normalize_pixels, round_to
from metamorph_jax.ops.resample import reduce_tokens
from metamorph_jax.sharding.rules import constrain
from metamorph_jax.typing import (
    NEWLINE,
    Array,
    Batch,
    Bool,
    CaptionBatch,
    Float,
    Int,
    PyTree,
    Shaped,
)


class MetaMorphOutput(NamedTuple):
    """What the losses need.

    Attributes:
        hidden: after the final norm.
        features: visual tokens of the row's images: input, and (constant) target.
    """

    hidden: Float[Array, "B T D"]
    features: Float[Array, "B I P E"]


class MetaMorph(nn.Module):
    """The composition; see the module docstring.

    Attributes:
        stacked: whether the decoder's blocks are stacked, as they are trained and stored; False
            for parameters from `stack.unstack_blocks`, which `decode_cached` needs.
    """

    config: ModelConfig
    stacked: bool = True

    def setup(self):
        """Creates the parts; their names are those of the parameter tree."""
        cfg = self.config
        types = (jnp.dtype(cfg.dtype), jnp.dtype(cfg.param_dtype))
        self.vision_tower = VisionTower(cfg.vision, *types)
        self.connector = create_connector(cfg, *types)
        self.language_model = Llama(cfg.llm, *types, self.stacked)
        if cfg.vision_head != "none":
            self.vision_head = create_vision_head(cfg, *types)
        if cfg.contrastive_dim is not None:
            self.contrastive = ContrastiveHead(cfg, *types)
        if cfg.image_newline:
            width = cfg.llm.embed_dim
            # Drawn as LLaVA's `llava_arch.py` does (initialize_vision_modules).
            self.image_newline = Vector(width, "embed", *types, stddev=width**-0.5)

    def __call__(self, batch: Batch) -> MetaMorphOutput:
        """Returns hidden states and features of packed rows.

        Rows that bring their features skip the tower: none of it is compiled.
        """
        if "features" in batch:
            features = batch["features"].astype(jnp.float32)
        else:
            features = self.encode(batch["images"])
        mixture = None
        if "visual_sources" in batch:
            mixture = batch["visual_sources"], batch["visual_weights"]
        visual = self.connect(features)
        embeddings = self.embed(batch["tokens"], batch["visual_index"], visual, mixture)
        hidden = self.decode(embeddings, batch["segment_ids"], batch["positions"])
        return MetaMorphOutput(hidden, features)

    def encode(self, images: Shaped[Array, "B I height width 3"]) -> Float[Array, "B I P E"]:
        """Returns the visual tokens of each image, in float32, rounded to what `dtype` can hold.

        Rounded here, they are the same whether they come from the tower or from a feature cache.

        Args:
            images: uint8 pixels, or floating pixels that are already normalised.
        """
        cfg = self.config
        flat = einops.rearrange(images, "B I height width c -> (B I) height width c")
        pixels = normalize_pixels(flat, cfg.vision.family)
        tokens = self.vision_tower(constrain(pixels, "images", None, None, None))
        reduced = reduce_tokens(tokens, cfg.visual_tokens.reduction, cfg.visual_tokens.num_tokens)
        features = round_to(self._as_visual_tokens(reduced), cfg.dtype)
        features = einops.rearrange(features, "(B I) P E -> B I P E", B=images.shape[0])
        # Devices that share a row all need its visual tokens, which are few.
        return constrain(features, "batch", None, None, "visual")

    def connect(self, features: Float[Array, "B I P E"]) -> Float[Array, "B I P D"]:
        """Returns what the decoder reads in place of text embeddings."""
        return self.connector(features)

    def embed(
        self,
        tokens: Int[Array, "B T"],
        visual_index: Int[Array, "B T"],
        visual: Float[Array, "B I P D"],
        mixture: tuple[Int[Array, "B T 4"], Float[Array, "B T 4"]] | None = None,
    ) -> Float[Array, "B T D"]:
        """Returns the decoder's input: visual tokens where `visual_index` >= 0, else text.

        Args:
            tokens: ids of the text.
            visual_index: as in `Batch`; also says where the newline goes, if the model has one.
            visual: what `connect` returns.
            mixture: as in `Batch`, sources and weights; None: no visual token is mixed of others.
        """
        visual = constrain(visual, "batch", None, None, "embed")
        table = einops.rearrange(visual, "B I P D -> B (I P) D")
        chosen = mix_tokens(table, *mixture) if mixture else gather_tokens(table, visual_index)
        text = self.language_model.embed(tokens)
        if self.config.image_newline:
            text = jnp.where((visual_index == NEWLINE)[:, :, None], self.image_newline(), text)
        return jnp.where((visual_index >= 0)[:, :, None], chosen.astype(text.dtype), text)

    def decode(
        self,
        embeddings: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
    ) -> Float[Array, "B T D"]:
        """Returns hidden states after the final norm; segments of a row do not see each other."""
        return self.language_model.decode(embeddings, segment_ids, positions)

    def decode_cached(
        self,
        embeddings: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        cache: KVCache,
        write_index: Int[Array, ""],
        token_mask: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Returns hidden states of new positions and the new cache, see `Llama.decode_cached`."""
        return self.language_model.decode_cached(
            embeddings, positions, cache, write_index, token_mask
        )

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Returns float32 logits over the padded vocabulary; padding can never win."""
        return self.language_model.logits(hidden)

    def predict_visual_raw(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch E"]:
        """Returns the output of the vision head in float32; needs `config.vision_head`."""
        return self.vision_head(hidden).astype(jnp.float32)

    def predict_visual(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch E"]:
        """Returns the visual token that follows, normalised like the features it must match."""
        return self._as_visual_tokens(self.predict_visual_raw(hidden))

    def contrast(self, batch: CaptionBatch) -> ContrastiveOutput:
        """Returns embeddings of images and captions; needs `config.contrastive_dim`."""
        features = self.encode(batch["images"][:, None])[:, 0]
        return self.contrastive(features, batch["tokens"], batch["token_mask"])

    def touch_all(
        self, images: Shaped[Array, "B I height width 3"], tokens: Int[Array, "B T"]
    ) -> Float[Array, "B T V"]:
        """Runs every part once, so that `init` creates every parameter; the result has no use."""
        visual = self.connect(self.encode(images))
        ones = jnp.ones_like(tokens)
        hidden = self.decode(self.embed(tokens, -ones, visual), ones, ones)
        if self.config.vision_head != "none":
            self.predict_visual(hidden)
        if self.config.contrastive_dim is not None:
            self.contrast({"images": images[:, 0], "tokens": tokens, "token_mask": tokens >= 0})
        return self.logits(hidden)

    def _as_visual_tokens(self, x: Float[Array, "*batch E"]) -> Float[Array, "*batch E"]:
        """Returns features, or predictions of them, in the space where they are compared."""
        cfg = self.config.visual_tokens
        if cfg.normalize:
            x = l2_normalize(x)
        if cfg.softmax_temperature is not None:
            x = jax.nn.softmax(x / cfg.softmax_temperature, axis=-1)
        return x

    @staticmethod
    def head_table(params: PyTree) -> Float[Array, "D V"]:
        """Returns the output table for the chunked loss: the head, or the transposed input table.

        Args:
            params: the whole tree of this model.
        """
        language_model = params["language_model"]
        if "lm_head" in language_model:
            return language_model["lm_head"]["kernel"]
        return jnp.swapaxes(language_model["embed_tokens"]["embedding"], 0, 1)
