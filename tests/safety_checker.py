"""A Stable Diffusion safety checker of a few hundred parameters."""

from pathlib import Path

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor


def write_safety(folder: Path, *, objects_to_all: bool = False) -> None:
    """Writes the two folders of a checker that objects to nothing, or to everything."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2}
    vision = {"image_size": 8, "patch_size": 4}
    config = CLIPConfig(text_config=sizes, vision_config=sizes | vision, projection_dim=4)
    checker = StableDiffusionSafetyChecker(config)
    threshold = -2.0 if objects_to_all else 2.0  # a cosine is above the one and below the other
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(threshold)
        checker.special_care_embeds_weights.fill_(2.0)
    checker.save_pretrained(folder / "safety_checker")
    size = {"height": 8, "width": 8}
    processor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=size)
    processor.save_pretrained(folder / "feature_extractor")
