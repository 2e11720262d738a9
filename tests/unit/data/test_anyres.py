import numpy as np
import pytest

from metamorph_jax.data.anyres import (
    anyres_plan,
    content_box,
    merge_views,
    parse_pinpoints,
    select_resolution,
    single_view_plan,
)
from metamorph_jax.data.frame_tokens import frame_tokens, pool_frames
from metamorph_jax.errors import UserError

TILE, SIDE = 8, 2
PINPOINTS = [(8, 16), (16, 8), (16, 16)]


def test_interval_of_grids():
    assert parse_pinpoints("(1x1),...,(2x3)", 8) == (
        (8, 8),
        (8, 16),
        (8, 24),
        (16, 8),
        (16, 16),
        (16, 24),
    )
    assert len(parse_pinpoints(" (1x1), ..., (6x6) ", 384)) == 36


def test_listed_grids_keep_their_order():
    assert parse_pinpoints("(2x1), (1x3)", 8) == ((16, 8), (8, 24))
    assert parse_pinpoints("(1x1)", 8) == ((8, 8),)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "6x6",
        "(2x2),...,(1x1)",
        "(0x1),...,(2x2)",
        "(1x1),",
        "(1x1),...",
        "(1x1),...,(2x2),(3x3)",
    ],
)
def test_no_grids(spec):
    with pytest.raises(UserError, match=r"write them like '\(1x2\),\(2x2\)'"):
        parse_pinpoints(spec, 8)


@pytest.mark.parametrize("spec", [[], [[8, 12]], [[0, 8]], [[8, 8], [7, 8]], [[-8, 8]]])
def test_resolutions_that_are_no_tiles(spec):
    with pytest.raises(UserError, match="multiples of the tower's 8 pixels"):
        parse_pinpoints(spec, 8)


def test_most_pixels_then_least_waste_then_the_first():
    assert select_resolution((100, 100), PINPOINTS) == (16, 16)
    assert select_resolution((16, 7), PINPOINTS) == (16, 8)
    assert select_resolution((4, 4), PINPOINTS) == (8, 16)


def test_content_is_centred():
    assert content_box((4, 2), (16, 16)) == (0, 4, 16, 12)
    assert content_box((2, 4), (16, 16)) == (4, 0, 12, 16)
    assert content_box((1000, 1), (16, 16)) == (0, 7, 16, 8)


def test_plan_of_a_wide_image():
    """Two tiles of 2 x 2 patches side by side: the rows of both, each ended by a newline."""
    plan = anyres_plan((16, 8), PINPOINTS, TILE, SIDE)
    assert (plan.grid, plan.num_views, plan.num_tokens) == ((2, 1), 3, 14)
    expected = [0, 1, 2, 3, 4, 5, 8, 9, -1, 6, 7, 10, 11, -1]
    assert plan.index.tolist() == expected
    assert plan.is_newline.tolist() == [patch == -1 for patch in expected]


def test_borders_are_cropped():
    plan = anyres_plan((100, 50), [(16, 16)], TILE, SIDE)  # a quarter of black above and below
    assert plan.map_hw == (2, 4)
    assert plan.map.tolist() == [[6, 7, 10, 11], [12, 13, 16, 17]]


def test_flat_and_spatial_have_no_newline():
    flat = anyres_plan((16, 8), PINPOINTS, TILE, SIDE, merge="flat")
    assert flat.index.tolist() == list(range(12))
    spatial = anyres_plan((16, 8), PINPOINTS, TILE, SIDE, merge="spatial", with_base=False)
    assert spatial.index.tolist() == [4, 5, 8, 9, 6, 7, 10, 11]


def test_cap_shrinks_the_map():
    plan = anyres_plan((100, 100), PINPOINTS, TILE, SIDE, max_tiles=1)
    assert (plan.map_hw, plan.resized, plan.num_tokens) == ((2, 2), True, 4 + 2 * 3)
    sources, weights = plan.mixture
    assert sources[4].tolist() == [4, 5, 6, 7] and weights[4].tolist() == [0.25] * 4
    assert sources[6].tolist() == [-1] * 4 and not weights[6].any()
    assert plan.index.tolist() == [0, 1, 2, 3, 4, 8, -1, 12, 16, -1]
    features = np.arange(20, dtype=np.float64).reshape(5, 4, 1)
    tokens = merge_views(features, np.full((1, 1), -1.0), plan)[:, 0]
    means = [features[view].mean() for view in range(1, 5)]  # halved: the mean of two by two
    assert tokens.tolist() == [0, 1, 2, 3, *means[:2], -1, *means[2:], -1]


def test_a_little_more_than_the_cap_is_left_alone():
    plan = anyres_plan((100, 100), [(24, 24)], TILE, SIDE, max_tiles=8)
    assert not plan.resized


def test_single_view():
    assert single_view_plan(SIDE).index.tolist() == [0, 1, 2, 3]
    assert single_view_plan(SIDE, "spatial_unpad").index.tolist() == [0, 1, 2, 3, -1]


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (3, 7), (9999, 9998)])
@pytest.mark.parametrize("max_tiles", [None, 1, 2])
def test_tokens_and_newlines_always_add_up(size, max_tiles):
    plan = anyres_plan(size, PINPOINTS, TILE, SIDE, max_tiles=max_tiles)
    features = np.random.default_rng(0).normal(size=(plan.num_views, SIDE * SIDE, 3))
    newline = np.full((1, 3), 7.0)
    tokens = merge_views(features, newline, plan)
    assert tokens.shape == (plan.num_tokens, 3)
    np.testing.assert_array_equal((tokens == 7.0).all(1), plan.is_newline)


def test_pooled_frames():
    maps = np.arange(32, dtype=np.float64).reshape(2, 4, 4, 1)
    assert pool_frames(maps, "average")[0, ..., 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert pool_frames(maps, "max")[0, ..., 0].tolist() == [[5, 7], [13, 15]]
    assert pool_frames(maps[:, :3, :3], "bilinear").shape == (2, 2, 2, 1)


@pytest.mark.parametrize(
    ("newlines", "expected"),
    [
        ("grid", [0, 1, -1, 2, 3, -1, 4, 5, -1, 6, 7, -1]),
        ("frame", [0, 1, 2, 3, -1, 4, 5, 6, 7, -1]),
        ("one_token", [0, 1, 2, 3, 4, 5, 6, 7, -1]),
        ("no_token", [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_newlines_of_a_video(newlines, expected):
    maps = np.arange(8, dtype=np.float64).reshape(2, 2, 2, 1)
    tokens = frame_tokens(maps, np.full((1, 1), -1.0), newlines)
    assert tokens[:, 0].tolist() == expected
