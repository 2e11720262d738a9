"""From visual tokens to pixels."""

import copy

import numpy as np
import pytest
import torch

from metamorph_jax.errors import UserError
from metamorph_jax.visualizer import painter
from metamorph_jax.visualizer.model import Visualizer
from metamorph_jax.visualizer.painter import Painter
from metamorph_jax.visualizer.parts import load_parts
from metamorph_jax.visualizer.sampling import load_safety
from metamorph_jax.visualizer.settings import PaintSettings
from tests import tolerances
from tests.safety_checker import write_safety
from tests.visualizer_files import MODEL, SD_MODEL, write_stable_diffusion

TOKENS = torch.randn((5, 4, 6), generator=torch.Generator().manual_seed(0))


def pixels(**settings):
    torch.manual_seed(0)
    return Painter(Visualizer(MODEL), PaintSettings(**{"num_steps": 2} | settings))


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory):
    folder = write_stable_diffusion(tmp_path_factory.mktemp("sd"))
    torch.manual_seed(0)
    return Visualizer(SD_MODEL, load_parts(folder, SD_MODEL))


def test_defaults_are_those_of_the_kind(stable_diffusion):
    torch.manual_seed(0)
    found = Painter(Visualizer(MODEL)).settings
    assert (found.guidance, found.num_steps, found.size) == ((1.0,), 20, 8)
    assert found.scheduler == "DDIMScheduler"
    found = Painter(stable_diffusion).settings
    assert (found.guidance, found.num_steps, found.size) == ((6.0, 7.5, 10.0, 12.5), 50, 16)
    assert found.scheduler == "PNDMScheduler"


def test_batches_do_not_change_pictures(monkeypatch):
    model = pixels()
    together = model.paint(TOKENS, 1.0, range(5)).pictures
    monkeypatch.setattr(painter, "MAX_BATCH_SIZE", 2)
    apart = model.paint(TOKENS, 1.0, range(5)).pictures
    # Sums in another order may tip a rounding to the next of 255 levels.
    assert np.abs(together.astype(int) - apart.astype(int)).max() <= 1


def test_seed_and_tokens_decide_the_picture():
    model = pixels()
    first = model.paint(TOKENS[:1], 1.0, [1]).pictures
    np.testing.assert_array_equal(model.paint(TOKENS[:1], 1.0, [1]).pictures, first)
    assert (model.paint(TOKENS[:1], 1.0, [2]).pictures != first).any()
    assert (model.paint(TOKENS[1:2], 1.0, [1]).pictures != first).any()


def test_painting_leaves_the_global_random_state_alone():
    model = pixels()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    model.paint(TOKENS[:1], 1.0, [0])
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(("size", "side"), [(None, 16), (32, 32)])
def test_a_vae_decodes_to_the_size_asked_for(stable_diffusion, size, side):
    model = Painter(stable_diffusion, PaintSettings(num_steps=2, size=size))
    painted = model.paint(TOKENS, 7.5, range(5))
    assert painted.pictures.shape == (5, side, side, 3)
    assert painted.pictures.dtype == np.uint8
    assert not painted.is_flagged.any()
    assert painted.pictures.std() > 0


@pytest.mark.parametrize(
    ("dtype", "limit"),
    [
        ("bfloat16", tolerances.BFLOAT16_PICTURE_LEVELS),
        ("float16", tolerances.FLOAT16_PICTURE_LEVELS),
    ],
)
@pytest.mark.parametrize("kind", ["pixels", "vae"])
def test_halves_paint_nearly_the_same_pictures(stable_diffusion, capfd, kind, dtype, limit):
    def paint(name):
        settings = PaintSettings(num_steps=8, dtype=name)
        model, guidance = pixels(num_steps=8, dtype=name), 1.0
        if kind == "vae":
            model, guidance = Painter(copy.deepcopy(stable_diffusion), settings), 7.5
        return model.paint(TOKENS, guidance, range(5)).pictures.astype(int)

    whole, half = paint("float32"), paint(dtype)
    assert half.dtype == int and whole.std() > 20
    assert 0 < np.abs(half - whole).max() <= limit
    # Diffusers has warnings about halves that do not apply.
    assert "float" not in capfd.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("objects", [True, False])
def test_what_the_safety_checker_objects_to_is_black_and_said_so(
    stable_diffusion, tmp_path, objects, dtype
):
    write_safety(tmp_path, objects_to_all=objects)
    settings, safety = PaintSettings(num_steps=1, dtype=dtype), load_safety(tmp_path)
    model = Painter(copy.deepcopy(stable_diffusion), settings, safety)
    painted = model.paint(TOKENS[:2], 1.0, [0, 1])
    assert painted.is_flagged.tolist() == [objects] * 2
    assert (painted.pictures.max() == 0) == objects


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_steps": 0}, "steps=0: from 1 to 1000"),
        ({"num_steps": 1001}, "steps=1001"),
        ({"guidance": (2.0, 0.5)}, "guidance=0.5"),
        ({"scheduler": "Dream"}, "scheduler=Dream"),
        ({"size": 16}, "size=16: this visualizer paints pixels, 8x8"),
    ],
)
def test_settings_out_of_range_are_told(settings, told):
    with pytest.raises(UserError, match=told):
        pixels(**settings)


def test_size_that_the_unet_cannot_halve_is_told(stable_diffusion):
    with pytest.raises(UserError, match="size=20: a multiple of 8 pixels"):
        Painter(stable_diffusion, PaintSettings(size=20))
