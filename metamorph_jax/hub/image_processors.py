"""`preprocessor_config.json` of our image geometries, for the processors of `transformers`.

**Source:** the files of google/siglip-so400m-patch14-384, openai/clip-vit-large-patch14-336 and
llava-hf/llava-1.5-7b-hf; transformers `models/llava/image_processing_llava.py`.
"""

from typing import Any, Literal

from metamorph_jax.config.presets import PIXEL_STATISTICS
from metamorph_jax.config.schema_model import VisionConfig

_BICUBIC = 3  # as image processors number it


def image_processor_json(
    vision: VisionConfig, image_geometry: Literal["square", "pad"]
) -> dict[str, Any]:
    """Returns what makes pixels of an image as our data road does.

    Args:
        vision: the tower.
        image_geometry: `square` is the family's own processor; `pad` pads with the mean colour
            first, for which only LLaVA's processor has a name.
    """
    side, (mean, std) = vision.image_size, PIXEL_STATISTICS[vision.family]
    square = {"height": side, "width": side}
    fields = {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square,
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    if image_geometry == "pad":
        own = {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
        return fields | own | {"do_center_crop": False}
    if vision.family == "siglip":
        return fields | {"image_processor_type": "SiglipImageProcessor"}
    cut = {"size": {"shortest_edge": side}, "do_center_crop": True, "crop_size": square}
    return fields | cut | {"image_processor_type": "CLIPImageProcessor"}
