"""LLaVA's golden set: which tokens an image of any resolution becomes, and where they go."""

import hashlib
import json

import numpy as np
import pytest

from metamorph_jax.data.anyres import anyres_plan, content_box, merge_views, parse_pinpoints
from tests.golden import reference_expansion as reference
from tests.golden_data import GOLDEN
from tests.tolerances import GOLDEN_MERGED_FEATURES

pytestmark = pytest.mark.golden
DATA = json.loads((GOLDEN.parent / "llava" / "anyres.json").read_text("utf-8"))
VIEW = 10000  # the golden set numbers patch p of view v as v * VIEW + p
NEWLINE = -1


def case_id(case):
    width, height = case["size_wh"]
    return f"{case['pinpoints']}-{case['image_aspect_ratio']}-{case['merge']}-{width}x{height}"


def plan_of(case):
    pinpoints = DATA["pinpoint_sets"][case["pinpoints"]]
    tile, side = pinpoints["tile"], pinpoints["patches_per_side"]
    cap = case["image_aspect_ratio"].removeprefix("anyres").removeprefix("_max_")
    plan = anyres_plan(
        tuple(case["size_wh"]),
        parse_pinpoints(pinpoints["spec"], tile),
        tile,
        side,
        max_tiles=int(cap) if cap else None,
        merge=case["merge"].removesuffix("_nobase"),
        with_base=not case["merge"].endswith("_nobase"),
    )
    return plan, side * side


def check_tokens(plan, num_patches, case):
    """Which patch each token is, or what it is mixed of."""
    assert plan.resized == case["interpolated"]
    if not plan.resized:
        view, patch = np.divmod(plan.index, num_patches)
        index = np.where(plan.index < 0, NEWLINE, view * VIEW + patch).astype("<i4")
        assert hashlib.sha256(index.tobytes()).hexdigest() == case["plan_sha256"]
        assert index.tolist() == case.get("plan", index.tolist())
        return
    views, patches = np.meshgrid(np.arange(plan.num_views), np.arange(num_patches), indexing="ij")
    features = (1e6 + views * VIEW + patches)[..., None]
    tokens = merge_views(features, np.full((1, 1), NEWLINE, np.float64), plan)[:, 0]
    first = tokens[len(plan.base) :][: len(case["feature_first"])]
    np.testing.assert_allclose(first, case["feature_first"], rtol=GOLDEN_MERGED_FEATURES)
    np.testing.assert_allclose(tokens.mean(), case["feature_mean"], rtol=GOLDEN_MERGED_FEATURES)


@pytest.mark.parametrize("case", DATA["cases"], ids=case_id)
def test_plan(case):
    plan, num_patches = plan_of(case)
    size = tuple(case["size_wh"])
    ours = {
        "best_resolution_wh": plan.resolution,
        "grid_wh": plan.grid,
        "n_image_tokens": plan.num_tokens,
        "n_newline": int(plan.is_newline.sum()),
        "content_box_xyxy": content_box(size, plan.resolution),
        "unpadded_map_hw": plan.map.shape,
        "final_map_hw": plan.map_hw,
    }
    listed = {name: value for name, value in ours.items() if name in case}
    as_lists = {
        name: list(value) if isinstance(value, tuple) else value for name, value in listed.items()
    }
    assert as_lists == {name: case[name] for name in listed}
    check_tokens(plan, num_patches, case)


def test_every_kind_of_case_is_there():
    cases = DATA["cases"]
    assert {case["merge"] for case in cases} == {
        "spatial_unpad",
        "spatial_unpad_nobase",
        "spatial",
        "flat",
    }
    assert {case["interpolated"] for case in cases} == {True, False}
    assert {case["protocol"] for case in DATA["expansion"]} == {"llava-1.1", "next"}


@pytest.mark.parametrize(
    "case", DATA["expansion"], ids=lambda case: f"{case['protocol']}-{case['name']}"
)
def test_expansion(case):
    """Whole batches of the reference, put together from our plans."""
    if "error" in case:
        with pytest.raises(IndexError):
            reference.expand(case)
        return
    expanded = reference.expand(case)
    for name in ("embeds", "out_labels", "out_attention_mask", "out_position_ids"):
        assert expanded[name] == case[name], name
