"""What the U-Net is conditioned on."""

import dataclasses

import torch

from metamorph_jax.visualizer.model import Visualizer
from metamorph_jax.visualizer.schema import ProjectorConfig
from tests.visualizer_files import MODEL

TOKENS = torch.randn((3, 4, 6), generator=torch.Generator().manual_seed(0))


def model() -> Visualizer:
    torch.manual_seed(0)
    return Visualizer(MODEL).eval()


def test_short_context_is_filled_up_with_zero_rows():
    context = model().condition(TOKENS)
    assert context.shape == (3, 5, 8)
    assert context[:, 4].abs().max() == 0
    assert context[:, :4].abs().sum(-1).min() > 0


def test_dropped_condition_is_zero_in_the_whole_row():
    visualizer = model()
    dropped = visualizer.condition(TOKENS, torch.tensor([False, True, False]))
    kept = visualizer.condition(TOKENS)
    assert dropped[1].abs().max() == 0
    assert torch.equal(dropped[[0, 2]], kept[[0, 2]])


def test_positions_tell_equal_tokens_apart():
    tokens = TOKENS[:, :1].expand(-1, 4, -1)
    context = model().condition(tokens)
    assert not torch.allclose(context[:, 0], context[:, 1])
    plain = dataclasses.replace(MODEL, projector=ProjectorConfig(hidden_dim=12))
    context = Visualizer(plain).condition(tokens)
    assert torch.allclose(context[:, 0], context[:, 1])


def test_cross_attention_sits_where_the_recipe_says():
    unet = model().unet
    assert [hasattr(block, "attentions") for block in unet.down_blocks] == [False, True]
    assert [hasattr(block, "attentions") for block in unet.up_blocks] == [True, False]
    assert unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2.heads == 2


def test_prediction_depends_on_tokens_and_their_order():
    visualizer = model()
    noisy = torch.randn((3, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([10, 500, 999])

    def predict(tokens):
        return visualizer(noisy, timesteps, visualizer.condition(tokens))

    assert predict(TOKENS).shape == noisy.shape
    assert not torch.equal(predict(TOKENS), predict(-TOKENS))
    assert not torch.equal(predict(TOKENS), predict(TOKENS.flip(1)))
