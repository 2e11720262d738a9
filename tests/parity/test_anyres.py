"""Plans of views and tokens against Hugging Face's LLaVA-NeXT, and maps against torch.

Reference: transformers 5.23 `models/llava_next` (all its sizes are (height, width)), torch 2.13.
Hugging Face's crop of the padding rounds `height * scale` to seven decimals before it drops the
fraction; the original does not, so that a product one rounding error below a whole number loses a
whole row or column there, and the map is cut by one row or column on either side more. We follow
the original, which trained the published weights.
"""

import numpy as np
import pytest
import torch
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
    unpad_image,
)

from metamorph_jax.data.anyres import anyres_plan, parse_pinpoints, resize_map
from tests.tolerances import PARITY

TILE, SIDE = 336, 24
SETS = {
    "llava16": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    "onevision": "(1x1),...,(6x6)",
}


def random_sizes():
    random = np.random.default_rng(3)
    wide = np.exp(random.uniform(0, np.log(5000), (200, 2))).astype(int) + 1
    usual = random.integers(200, 1400, (200, 2))
    return [tuple(size) for size in np.concatenate([wide, usual]).tolist()]


def their_map(size, plan):
    """Returns the patches of the map that Hugging Face keeps."""
    columns, rows = plan.grid
    patches = torch.arange(SIDE * SIDE, SIDE * SIDE * plan.num_views)
    patches = patches.view(rows, columns, SIDE, SIDE).permute(0, 2, 1, 3)
    patches = patches.reshape(1, rows * SIDE, columns * SIDE)
    return unpad_image(patches, (size[1], size[0]))[0].numpy()


def truncation_is_rounded(size, plan):
    """Whether Hugging Face's rounding changes the length of the image on the map."""
    (width, height), (columns, rows) = size, plan.grid
    if width / height > columns / rows:
        length = height * (columns * SIDE / width)
    else:
        length = width * (rows * SIDE / height)
    return int(length) != int(round(length, 7))


@pytest.mark.parametrize("name", SETS)
def test_plans_of_many_odd_sizes(name):
    pinpoints = parse_pinpoints(SETS[name], TILE)
    swapped = [(height, width) for width, height in pinpoints]
    num_rounded = 0
    for size in random_sizes():
        plan = anyres_plan(size, pinpoints, TILE, SIDE)
        height_width = (size[1], size[0])
        rows, columns = get_anyres_image_grid_shape(height_width, swapped, TILE)
        assert plan.grid == (columns, rows), size
        assert plan.num_views == image_size_to_num_patches(height_width, swapped, TILE), size
        if truncation_is_rounded(size, plan):
            num_rounded += 1
        else:
            np.testing.assert_array_equal(plan.map, their_map(size, plan), err_msg=str(size))
    assert num_rounded < 10


@pytest.mark.parametrize("size", [(47, 1128), (1128, 47)])
def test_where_hugging_face_differs(size):
    """The product should be 3 and comes out just below; they keep 4 of 24 patches, we do 2.

    Of the 6.2 million sizes up to 2,499 x 2,499 it is 103 on each of these two grids.
    """
    plan = anyres_plan(size, parse_pinpoints(SETS["llava16"], TILE), TILE, SIDE)
    assert truncation_is_rounded(size, plan)
    assert min(plan.map.shape) == 2
    assert min(their_map(size, plan).shape) == 4


@pytest.mark.parametrize(
    ("old", "new"), [((54, 54), (40, 31)), ((5, 162), (4, 137)), ((3, 3), (2, 2))]
)
def test_resized_map(old, new):
    features = np.random.default_rng(0).normal(size=(*old, 3))  # float64: torch counts in it
    channels_first = torch.from_numpy(features).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(channels_first, new, mode="bilinear")[0]
    ours = resize_map(features, *new)
    np.testing.assert_allclose(ours, expected.permute(1, 2, 0).numpy(), rtol=0, atol=PARITY)
