"""LLaVA's golden plans again, as they stand in the rows that a model is trained on."""

import hashlib

import numpy as np
import pytest

from metamorph_jax.config.schema_data import DataConfig, SourceConfig
from metamorph_jax.data.conversation import read_conversation
from metamorph_jax.data.media import Tile
from metamorph_jax.data.packing import cut_example
from metamorph_jax.data.rows import Slots, build_rows
from metamorph_jax.data.templates import TEMPLATES, render_example
from metamorph_jax.data.views import expand_images, view_layout
from metamorph_jax.typing import NEWLINE, TEXT
from tests.data_files import record, small_tokenizer
from tests.golden.test_anyres import DATA, VIEW, case_id
from tests.tolerances import FLOAT32_REORDERED

pytestmark = pytest.mark.golden
CASES = [case for case in DATA["cases"] if case["merge"] == "spatial_unpad"]
GRIDS = {
    "llava16_336": "(1x2),(2x1),(2x2),(3x1),(1x3)",
    "small_56": "(1x2),(2x1),(2x2),(3x1),(1x3)",
    "ov_2x2_336": "(1x1),...,(2x2)",
    "onevision_384": "(1x1),...,(6x6)",
}
MAX_LEN, MAX_IMAGES = 60_000, 80


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def row_of(case, tokenizer):
    """Returns a row with an image of the case and one of an answer, twice; P; and their views."""
    pinpoints = DATA["pinpoint_sets"][case["pinpoints"]]
    tile, side = pinpoints["tile"], pinpoints["patches_per_side"]
    data = DataConfig(
        sources=(SourceConfig(path="a.jsonl"),),
        image_geometry=case["image_aspect_ratio"],
        image_grid_pinpoints=GRIDS[case["pinpoints"]],
        max_images=MAX_IMAGES,
    )
    assert data.problems() == []
    layout = view_layout(data, tile, side * side)
    spec = pinpoints["spec"]
    assert isinstance(spec, str) or layout.pinpoints == tuple(map(tuple, spec))
    said = record("<image> What?", "Here: <image>", ["read.png", "answer.png"])
    example = render_example(
        read_conversation(said), TEMPLATES["metamorph_llama3"], tokenizer, side * side
    )
    expanded = expand_images(example, layout, lambda media: tuple(case["size_wh"]))
    assert cut_example(expanded, MAX_LEN, MAX_IMAGES) is expanded
    assert [media for media in expanded.images if not isinstance(media, Tile)] == [
        "read.png",
        "answer.png",
    ]
    rows = build_rows(
        [([expanded, expanded], [])],
        Slots("images", (1,), np.dtype(np.uint8)),
        max_seq_len=MAX_LEN,
        max_images=MAX_IMAGES,
        num_visual_tokens=side * side,
        has_mixtures=layout.has_mixtures,
    )
    return {name: array[0] for name, array in rows.items()}, side * side, len(expanded.images)


def check_tokens(row, here, first, num_patches, case):
    """Compares the tokens of an image whose first view has `first` tokens before it."""
    index = row["visual_index"][here]
    assert len(index) == case["n_image_tokens"]
    assert (index == NEWLINE).sum() == case["n_newline"]
    if not case["interpolated"]:
        view, patch = np.divmod(index - first, num_patches)
        numbers = np.where(index == NEWLINE, -1, view * VIEW + patch).astype("<i4")
        assert hashlib.sha256(numbers.tobytes()).hexdigest() == case["plan_sha256"]
    if "visual_sources" not in row:
        return
    sources, weights = row["visual_sources"][here] - first, row["visual_weights"][here]
    if not case["interpolated"]:
        np.testing.assert_array_equal(sources[index >= 0, 0], index[index >= 0] - first)
        assert weights[index >= 0].tolist() == [[1, 0, 0, 0]] * int((index >= 0).sum())
        return
    view, patch = np.divmod(sources, num_patches)
    numbers = (weights * (view * VIEW + patch)).sum(axis=1)  # the golden set adds a million
    tokens = np.where(index == NEWLINE, -1, numbers + 1e6)
    start, expected = tokens[num_patches:][: len(case["feature_first"])], case["feature_first"]
    np.testing.assert_allclose(start - 1e6, np.array(expected) - 1e6, rtol=FLOAT32_REORDERED)
    np.testing.assert_allclose(tokens.mean(), case["feature_mean"], rtol=FLOAT32_REORDERED)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_row(case, tokenizer):
    row, num_patches, num_views = row_of(case, tokenizer)
    num_answer = np.count_nonzero(row["visual_target"] >= 0)
    assert num_answer == 2 * num_patches
    for segment in (1, 2):
        visual = (row["segment_ids"] == segment) & (row["visual_index"] != TEXT)
        here = np.flatnonzero(visual)[:-num_patches]
        first = (segment - 1) * num_views * num_patches
        check_tokens(row, here, first, num_patches, case)
        answer = row["visual_index"][np.flatnonzero(visual)[-num_patches:]]
        last = first + (num_views - 1) * num_patches
        assert answer.tolist() == list(range(last, last + num_patches))


def test_both_kinds_of_case_are_there():
    assert {case["interpolated"] for case in CASES} == {True, False}
    assert {case["pinpoints"] for case in CASES} == set(GRIDS)
