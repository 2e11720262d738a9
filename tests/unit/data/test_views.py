"""Views: which images become several, where their tokens go, and what shares a row with them."""

import numpy as np
import pytest
from PIL import Image as Picture

from metamorph_jax.config.schema_data import DataConfig, SourceConfig
from metamorph_jax.data.conversation import Conversation, Image, Text, Turn
from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.images import ImageLoader
from metamorph_jax.data.media import Boxed, Crop, NamedBox, Tile, VideoFrame
from metamorph_jax.data.packing import cut_example
from metamorph_jax.data.pipeline import TrainingData
from metamorph_jax.data.spans import ImageSpan, example_spans
from metamorph_jax.data.templates import TEMPLATES, render_example
from metamorph_jax.data.views import ViewLayout, all_views, expand_images, view_layout
from metamorph_jax.metrics.flops import count_batch
from tests.data_files import one_row, small_tokenizer, write_images, write_jsonl

P, TILE = 4, 8
LAYOUT = ViewLayout(pinpoints=((16, 8), (8, 16)), tile=TILE, side=2, max_tiles=None)
CAPPED = ViewLayout(pinpoints=((32, 32),), tile=TILE, side=2, max_tiles=1)
SIZES = {"wide.png": (40, 20), "high.png": (20, 40), "answer.png": (90, 10)}
NUM_TOKENS = {"wide.png": P + 2 * 5, "high.png": P + 4 * 3, "answer.png": P}
WIDE = [0, 1, 2, 3, 4, 5, 8, 9, -2, 6, 7, 10, 11, -2]
FRAME = VideoFrame("film.mp4", 1.0)
CONVERSATION = Conversation(
    (
        Turn("user", (Image("wide.png"), Image(FRAME), Image("high.png"), Text(" Which?"))),
        Turn("assistant", (Text("This: "), Image("answer.png"))),
    ),
    "f:1",
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def plain(tokenizer):
    return render_example(CONVERSATION, TEMPLATES["metamorph_llama3"], tokenizer, P)


@pytest.fixture(scope="module")
def example(plain):
    return expand_images(plain, LAYOUT, SIZES.__getitem__)


def test_only_still_images_that_are_read_have_tiles(example):
    wide, high = (
        [Tile(name, resolution, number) for number in range(2)]
        for name, resolution in (("wide.png", (16, 8)), ("high.png", (8, 16)))
    )
    views = ("wide.png", *wide, FRAME, "high.png", *high, "answer.png")
    assert example.images == views
    assert example.image_is_answer == (False,) * 7 + (True,)
    assert sorted(map(str, all_views(CONVERSATION, LAYOUT, SIZES.__getitem__))) == sorted(
        map(str, views)
    )


def test_tokens_of_each_image(example):
    firsts = {"wide.png": 0, FRAME: 3, "high.png": 4, "answer.png": 7}
    for media, first in firsts.items():
        here = example.image_index == first
        assert here.sum() == NUM_TOKENS.get(media, P)
        assert np.ptp(np.flatnonzero(here)) == here.sum() - 1  # nothing in between
        assert not example.tokens[here].any() and not example.supervised[here].any()
    index = example.visual_index
    assert index[example.image_index == 0].tolist() == WIDE
    assert index[example.image_index == 3].tolist() == [12, 13, 14, 15]
    high = [*range(16, 20), 20, 21, -2, 22, 23, -2, 24, 25, -2, 26, 27, -2]
    assert index[example.image_index == 4].tolist() == high
    assert index[example.image_index == 7].tolist() == [28, 29, 30, 31]
    np.testing.assert_array_equal(example.visual_is_answer, example.image_index == 7)


def test_text_is_what_it_was(plain, example):
    for name in ("tokens", "supervised"):
        before, after = getattr(plain, name), getattr(example, name)
        np.testing.assert_array_equal(after[example.image_index < 0], before[plain.image_index < 0])
    assert (example.visual_index[example.image_index < 0] == -1).all()


def test_without_a_layout_nothing_happens(plain):
    assert expand_images(plain, None, SIZES.__getitem__) is plain
    assert all_views(CONVERSATION, None, SIZES.__getitem__) == list(plain.images)


def test_text_alone(tokenizer):
    said = Conversation((Turn("user", (Text("a"),)), Turn("assistant", (Text("b"),))), "f:1")
    text = render_example(said, TEMPLATES["llama3"], tokenizer, P)
    for layout in (LAYOUT, CAPPED):
        same = expand_images(text, layout, SIZES.__getitem__)
        assert same.images == () and same.image_is_answer == () and same.mixture is None
        np.testing.assert_array_equal(same.tokens, text.tokens)


def test_spans_show_each_image_once(example, tokenizer):
    found = [span for span in example_spans(example, tokenizer) if isinstance(span, ImageSpan)]
    assert [(span.media, span.num_tokens, span.number) for span in found] == [
        ("wide.png", 14, 0),
        (FRAME, 4, 3),
        ("high.png", 16, 4),
        ("answer.png", 4, 7),
    ]


@pytest.mark.parametrize(
    ("max_images", "kept"), [(8, 8), (7, 7), (6, 4), (4, 4), (3, 3), (2, 0), (0, 0)]
)
def test_an_image_is_cut_with_all_its_views(example, max_images, kept):
    cut = cut_example(example, 1000, max_images)
    assert cut.images == example.images[:kept]
    assert set(cut.image_index[cut.image_index >= 0]) == {0, 3, 4, 7} & set(range(kept))
    assert (cut is example) == (kept == 8)


def test_an_image_is_cut_with_all_its_tokens(example):
    last = int(np.flatnonzero(example.image_index == 4)[-1])
    assert len(cut_example(example, last + 1, 99).images) == 7
    cut = cut_example(example, last, 99)
    assert len(cut.images) == 4 and cut.image_index.max() == 3


def test_mixtures_of_a_capped_image(plain):
    example = expand_images(plain, CAPPED, {name: (50, 50) for name in SIZES}.__getitem__)
    here = np.flatnonzero(example.image_index == 0)
    sources, weights = example.sources
    assert len(here) == P + 2 * 3  # a map of 8 x 8 becomes one of 2 x 2
    assert sources[here[0]].tolist() == [0] * 4 and weights[here[0]].tolist() == [1, 0, 0, 0]
    # The middle of the first 4 x 4: the last patch of the tiles 1, 2, 5 and 6, for each its own.
    assert sources[here[P]].tolist() == [4 + 3, 8 + 2, 20 + 1, 24 + 0]
    assert weights[here[P]].tolist() == [0.25] * 4
    assert sources[here[P + 2]].tolist() == [-1] * 4 and not weights[here[P + 2]].any()
    assert example.visual_index[here[P + 2]] == -2
    text = example.image_index < 0
    assert (sources[text] == -1).all() and not weights[text].any()
    last = example.image_index == len(example.images) - 1
    np.testing.assert_array_equal(sources[last, 0], example.visual_index[last])
    cut = cut_example(example, len(example) - 3, 99)
    assert len(cut.mixture.sources) == len(cut.mixture.weights) == len(cut)


def test_rows_count_views_and_say_mixtures_only_if_asked(example, plain):
    capped = expand_images(plain, CAPPED, {name: (50, 50) for name in SIZES}.__getitem__)
    sizes = {"max_seq_len": 300, "max_images": 60, "num_visual_tokens": P, "image_size": TILE}
    row = one_row([example, example], [], **sizes)
    assert "visual_sources" not in row
    second = row["visual_index"][row["segment_ids"] == 2]
    offset = len(example.images) * P
    shifted = np.where(example.visual_index >= 0, example.visual_index + offset, second)
    np.testing.assert_array_equal(second, shifted)
    np.testing.assert_array_equal(second == -2, example.visual_index == -2)
    batch = {name: array[None] for name, array in row.items()}
    assert count_batch(batch, P).num_images == 2 * len(example.images)
    row = one_row([example, capped], [], has_mixtures=True, **sizes)
    second = row["segment_ids"] == 2
    shifted = np.where(capped.sources.sources >= 0, capped.sources.sources + offset, -1)
    np.testing.assert_array_equal(row["visual_sources"][second], shifted)
    np.testing.assert_array_equal(row["visual_weights"][second], capped.sources.weights)
    padding = row["segment_ids"] == 0
    assert (row["visual_sources"][padding] == -1).all()
    batch = {name: array[None] for name, array in row.items()}
    # Of the capped images only the tiles in the middle of each quarter are looked at, and the base.
    assert count_batch(batch, P).num_images == len(example.images) + 2 * 17 + 2


def write_picture(folder, name, size, orientation=None):
    exif = Picture.Exif()
    if orientation:
        exif[0x0112] = orientation
    picture = Picture.new("RGB", size, (200, 100, 50))
    picture.save(folder / name, exif=exif)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize(("orientation", "size"), [(None, (30, 20)), (3, (30, 20)), (6, (20, 30))])
def test_sizes_are_those_of_the_upright_image(tmp_path, suffix, orientation, size):
    write_picture(tmp_path, f"a.{suffix}", (30, 20), orientation)
    loader = ImageLoader(str(tmp_path), TILE, "anyres")
    assert loader.image_size(f"a.{suffix}", "f:1") == size
    assert loader.image_size(Boxed(f"a.{suffix}", (NamedBox((1, 1, 9, 9)),)), "f:1") == size
    assert loader.image_size(Crop(f"a.{suffix}", (10, 5, 99, 15)), "f:1") == (size[0] - 10, 10)


def test_an_orientation_behind_the_pixels_is_seen(tmp_path):
    write_picture(tmp_path, "a.png", (30, 20), 6)
    data, chunks = (tmp_path / "a.png").read_bytes(), []
    while 8 + sum(map(len, chunks)) < len(data):
        begin = 8 + sum(map(len, chunks))
        chunks.append(data[begin : begin + 12 + int.from_bytes(data[begin : begin + 4], "big")])
    chunks.insert(-1, chunks.pop(next(i for i, c in enumerate(chunks) if c[4:8] == b"eXIf")))
    assert [chunk[4:8] for chunk in chunks[-3:]] == [b"IDAT", b"eXIf", b"IEND"]
    (tmp_path / "a.png").write_bytes(data[:8] + b"".join(chunks))
    loader = ImageLoader(str(tmp_path), TILE, "anyres")
    assert loader.image_size("a.png", "f:1") == (20, 30)


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_size_of_no_image(tmp_path, content):
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BadSample, match=r"f:1: image 'a\.png'"):
        ImageLoader(str(tmp_path), TILE, "anyres").image_size("a.png", "f:1")


def test_layout_of_a_recipe():
    data = DataConfig(sources=(SourceConfig(path="a"),), image_geometry="anyres_max_9")
    layout = view_layout(data, 336, 576)
    assert layout.pinpoints == ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
    assert (layout.side, layout.max_tiles, layout.has_mixtures) == (24, 9, True)
    assert view_layout(DataConfig(sources=data.sources), 336, 576) is None


# From here on, whole stages.


def make(folder, tokenizer, **fields):
    data = {"image_geometry": "anyres", "max_seq_len": 128, "max_images": 12} | fields
    return TrainingData(
        DataConfig(sources=(SourceConfig(path=str(folder / "data.jsonl")),), **data),
        tokenizer,
        TEMPLATES["metamorph_llama3"],
        image_size=TILE,
        num_visual_tokens=P,
        seed=0,
        stage_name="vpit",
        global_batch_size=2,
    )


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, 1)  # 0.png
    write_picture(tmp_path, "wide.png", (60, 20))
    write_picture(tmp_path, "high.png", (20, 50))
    records = []
    for number in range(8):
        image = ("0.png", "wide.png", "high.png", "0.png")[number % 4]
        question, answer = ("<image> What?", "cat") if number % 4 < 3 else ("Draw.", "<image>")
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        records.append({"image": image, "conversations": turns})
    write_jsonl(tmp_path / "data.jsonl", records)
    return tmp_path


@pytest.mark.parametrize("geometry", ["anyres", "anyres_max_1"])
def test_rows_hold_views_within_their_limits(folder, tokenizer, geometry):
    data = make(folder, tokenizer, image_geometry=geometry)
    shown = [data.example(index) for index in range(8)]
    facts = data.describe()
    assert facts["images"] == sum(len(example.images) for example in shown) > 8
    assert facts["answer_images"] == 2
    for step in range(2):
        batch = data.batch(step)
        assert ("visual_sources" in batch) == (geometry == "anyres_max_1")
        for row in range(2):
            used = batch["visual_index"][row].max() // P + 1
            assert used <= 12
            # Every view that tokens point to has pixels.
            for view in np.unique(batch["visual_index"][row] // P):
                assert view < 0 or batch["images"][row, view].any()


def test_geometry_and_grids_are_part_of_the_fingerprint(folder, tokenizer):
    geometries = [{}, {"image_geometry": "anyres_max_1"}, {"image_grid_pinpoints": "(2x2)"}]
    geometries.append({"image_geometry": "square"})
    prints = {make(folder, tokenizer, **fields).fingerprint for fields in geometries}
    assert len(prints) == len(geometries)


def test_bad_images(folder, tokenizer):
    """What is no image is found while data is measured; what ends early leaves its place empty."""
    (folder / "wide.png").write_bytes(b"no image")
    noise = np.random.default_rng(0).integers(0, 256, (50, 20, 3), np.uint8)
    Picture.fromarray(noise).save(folder / "high.jpg", quality=95)
    (folder / "high.jpg").write_bytes((folder / "high.jpg").read_bytes()[:-300])
    text = (folder / "data.jsonl").read_text().replace("high.png", "high.jpg")
    (folder / "data.jsonl").write_text(text)
    data = make(folder, tokenizer, max_bad_fraction=1.0)
    assert [finding.reason for finding in data.quarantine.findings] == ["unreadable_media"] * 2
    assert data.describe()["bad_examples"] == 2
    found = [finding for step in range(3) for finding in data.build(step).findings]
    assert {finding.where.rpartition(":")[2] for finding in found} == {"3", "7"}
    assert {finding.reason for finding in found} == {"unreadable_media"}


def test_an_image_of_more_views_than_a_row_holds_teaches_nothing(folder, tokenizer):
    data = make(folder, tokenizer, max_images=2, max_bad_fraction=0.0)
    assert {finding.reason for finding in data.quarantine.findings} == {"nothing_to_learn"}
    assert len(data.quarantine.findings) == 6
