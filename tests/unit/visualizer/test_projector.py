"""Sizes at the paper's widths; values are in the golden tests."""

import torch

from metamorph_jax.visualizer.projector import create_projector
from metamorph_jax.visualizer.schema import ProjectorConfig


def test_default_is_the_released_visualizers_projector():
    with torch.device("meta"):
        projector = create_projector(1152, 768, ProjectorConfig())
    assert sum(value.numel() for value in projector.parameters()) == 3_940_608


def test_queries_set_the_number_of_tokens():
    config = ProjectorConfig(mode="xattnffn", num_layers=1, num_heads=2, num_queries=7)
    assert create_projector(6, 8, config)(torch.ones(2, 4, 6)).shape == (2, 7, 8)
