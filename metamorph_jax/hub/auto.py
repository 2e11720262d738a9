"""MetaMorph for the Auto classes of transformers, without remote code.

    from metamorph_jax.hub import auto
    auto.register()
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)

The one module of this room, besides `remote/`, that imports torch.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from metamorph_jax.hub.remote.configuration_metamorph import MetaMorphConfig
from metamorph_jax.hub.remote.modeling_metamorph import (
    MetaMorphForConditionalGeneration,
    MetaMorphModel,
)
from metamorph_jax.hub.remote.processing_metamorph import MetaMorphProcessor


def register() -> None:
    """Makes the Auto classes know MetaMorph; calling it again changes nothing."""
    AutoConfig.register(MetaMorphConfig.model_type, MetaMorphConfig, exist_ok=True)
    AutoModel.register(MetaMorphConfig, MetaMorphModel, exist_ok=True)
    for auto in (AutoModelForImageTextToText, AutoModelForCausalLM):
        auto.register(MetaMorphConfig, MetaMorphForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(MetaMorphConfig, MetaMorphProcessor, exist_ok=True)
