"""D17: valid files with a few bytes changed, over the whole road; only our complaints come out."""

import io
import json
import time
import warnings

import numpy as np
import pytest
from PIL import Image

from metamorph_jax.config.schema_run import SourceConfig
from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.image_files import decode
from metamorph_jax.data.kinds import KINDS, make_conversation
from metamorph_jax.data.packing import cut_example
from metamorph_jax.data.records import Record, parse_record
from metamorph_jax.data.rows import build_rows, pixel_slots
from metamorph_jax.data.sources.json_text import decode_json
from metamorph_jax.data.templates import TEMPLATES, Example, render_example
from metamorph_jax.data.video import VideoInfo
from tests.data_files import small_tokenizer
from tests.kind_samples import make, turns
from tests.reliability.image_cases import encoded, webp_frames, webp_of_size

NUM_LINES, NUM_FILES = 10_000, 2_500  # changed copies: of all records, of each image file
MAX_SECONDS = 2.0  # of one case
MAX_SEQ_LEN, MAX_IMAGES, P = 160, 6, 2
FRAMES = [f"{second}.png" for second in range(9)]
BOX = {"box": [1, 2, 30, 40], "name": "cat"}
SEEDS = [
    {"conversations": turns("What?", "A cat.", "And é🐱?", "No."), "id": 7},
    {"image": "a.png", "conversations": turns("<image>\nWhat?", "A <image> cat.")},
    {"image": ["a.png", "b.png"], "conversations": turns("<image> Red.", "<image>")},
    {"image": "a.png", "caption": "A cat."},
    {"image": "a.png", "edited_image": {"path": "b.png"}, "instruction": "Make it red."},
    {"image": {"bytes_b64": "iVBORw0KGgo=", "path": "a.png"}, "caption": 'A \\ "cat".'},
    {"image": "a.png", "boxes": [BOX, BOX], "conversations": turns("<image> Where?", "Here.")},
    {
        "image": "a.png",
        "target_instances": [{"name": "cat", "bbox": [1, 2.5, 30, 4e1]}],
        "conversations": turns("<image> Where?", "Here."),
    },
    {
        "image": ["a.png", "a.png###[1, 2, 30, 40]"],
        "conversations": turns("<image> Where?", "[0.1]", "<image>", "Here."),
    },
    {"video": "a.mp4", "conversations": turns("<video> What?", "A cat.")},
    {"video": "frames", "fps": 2, "conversations": turns("What?", "A cat.")},
    {"video": FRAMES, "fps": 0.5e0, "conversations": turns("<video> What?", "A cat.")},
    {"image": "a.webm", "conversations": turns("<image> What?", "A cat.")},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": "A cat."},
        ],
        "image": "a.png",
    },
]
# What a change may put in, besides any byte: what means something on the road.
WORDS = [
    *b'{}[]",:\\-.0123456789e \n\0\x7f\xc3\xff',
    *(b"null", b"NaN", b"-Infinity", b"true", b'""', b"[]", b"{}", b"1e999", b"1e-308", b"1" * 30),
    *(b"<image>", b"<video>", b"###", b"\\ud83d", b"\\u0000", b"\xef\xbb\xbf", b"\xf0\x9f\x90\xb1"),
    *(b"human", b"gpt", b"system", b"<|eot_id|>", b"fps", b"image", b"video", b"boxes", b".mp4"),
]
FRAGMENTS = [bytes([word]) if isinstance(word, int) else word for word in WORDS]


def changed(data: bytes, random: np.random.Generator, others: list[bytes]) -> bytes:
    """Returns `data` with one to three changes; most touch few bytes, so that much stays valid."""
    for _ in range(random.integers(1, 4)):
        begin = int(random.integers(len(data)))
        end = begin + int(random.integers(9))
        match random.integers(16):
            case 0 | 1 | 2:  # another bit
                end, new = begin + 1, bytes([data[begin] ^ 1 << int(random.integers(8))])
            case 3 | 4 | 5:  # another byte
                end, new = begin + 1, random.bytes(1)
            case 6 | 7:
                end, new = begin, FRAGMENTS[random.integers(len(FRAGMENTS))]
            case 8 | 9:
                new = FRAGMENTS[random.integers(len(FRAGMENTS))]
            case 10 | 11 | 12:
                new = b""
            case 13:
                new = data[begin:end] * 3
            case 14:  # the same place of another file
                end = begin + int(random.integers(99))
                other = others[random.integers(len(others))]
                new = other[begin:end]
            case _:  # cut
                end, new = len(data), b""
        data = data[:begin] + new + data[end:] or b"\0"
    return data


def replaced(value, random: np.random.Generator, others: list):
    """Returns a JSON value with one of its parts, at any depth, replaced by another."""
    if isinstance(value, (dict, list)) and value and random.integers(5):
        copy = value.copy()
        keys = list(copy) if isinstance(copy, dict) else range(len(copy))
        key = keys[random.integers(len(keys))]
        copy[key] = replaced(copy[key], random, others)
        return copy
    return others[random.integers(len(others))]


ODD = [None, True, 0, -1, 10**40, 0.5, 1e-308, 5e-324, 1e308, float("nan"), float("inf")]
ODD += ["", " ", "none", "<image>", "<video>", "a.mp4", "a.png###[]", "a.png###[1, 1, 1, 1]", "\0"]
ODD += [[], {}, [[]], [None], [{}], [""], ["a.png"], ["a.png"] * 9, FRAMES[:1], BOX, [BOX] * 101]
ODD += [[1, 2, 3, 4], [4, 3, 2, 1], [float("nan")] * 4, turns("a", "b"), turns("", "")]


def video_info(video: str) -> VideoInfo:
    """Returns what opening it would tell; a function of the name, so that all shapes come up."""
    number = sum(video.encode())
    if not number % 7:
        raise BadSample("missing_media", "FILE:3: no such video")
    count = (1, 2, 3, 10, 500, 10**6)[number % 6]
    fps = (1.0, 29.97, 1000.0, 1e-9)[number % 4]
    if video.endswith(".mp4"):
        return VideoInfo(count / fps, fps, count)
    return VideoInfo(float(count), 1.0, count, is_folder=True)


class Road:
    """From the bytes of a line to a row; counts what became of each record."""

    def __init__(self, tokenizer):
        self.tokenizer, self.rows, self.refused = tokenizer, 0, 0

    def take(self, line: bytes) -> None:
        begun = time.monotonic()
        try:
            record = parse_record(decode_json(line, "FILE", 3), "FILE", 3)
        except BadSample as error:
            self._check(error)
        else:
            for number, kind in enumerate(KINDS):
                self._take_record(record, kind, number)
        assert time.monotonic() - begun < MAX_SECONDS, line

    def _take_record(self, record: Record, kind: str, number: int) -> None:
        formats = ("none", "region", "short_answer")
        source = SourceConfig(path="FILE", kind=kind, response_format=formats[number % 3])
        template = ("metamorph_llama3", "plain", "v1", "llama3")[number % 4]
        try:
            made = make_conversation(record, source, f"key/{kind}", video_info, MAX_IMAGES)
            whole = render_example(made, TEMPLATES[template], self.tokenizer, P)
        except BadSample as error:
            self._check(error)
        else:
            self._row(cut_example(whole, MAX_SEQ_LEN, MAX_IMAGES))

    def _check(self, error: BadSample) -> None:
        assert str(error).startswith("FILE:")
        str(error).encode()  # can be printed and written to the quarantine
        self.refused += 1

    def _row(self, example: Example) -> None:
        images = [np.full((2, 2, 3), 9, np.uint8)] * len(example.images)
        rows = build_rows(
            [([example], images)],
            pixel_slots(2),
            max_seq_len=MAX_SEQ_LEN,
            max_images=MAX_IMAGES,
            num_visual_tokens=P,
        )
        assert (rows["visual_index"] >= 0).sum() == P * len(images)
        assert (rows["images"] > 0).all(axis=(2, 3, 4)).sum() == len(images)
        assert 0 <= rows["tokens"].min() <= rows["tokens"].max() < self.tokenizer.vocab_size
        assert (rows["segment_ids"] > 0).sum() == len(example)
        self.rows += 1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_d17_lines_with_changed_bytes(tokenizer):
    random = np.random.default_rng(17)
    seeds = [
        json.dumps(seed, ensure_ascii=bool(index % 2)).encode() for index, seed in enumerate(SEEDS)
    ]
    road = Road(tokenizer)
    for line in seeds:
        road.take(line)
    valid = road.rows
    for number in range(NUM_LINES):
        road.take(changed(seeds[number % len(seeds)], random, seeds))
    assert valid > len(SEEDS)  # each is good for a kind or more
    assert road.rows - valid > NUM_LINES / 10 and road.refused > NUM_LINES  # both sides are met


def test_d17_lines_with_changed_values(tokenizer):
    random = np.random.default_rng(18)
    road = Road(tokenizer)
    for number in range(NUM_LINES):
        seed = SEEDS[number % len(SEEDS)]
        for _ in range(random.integers(1, 3)):
            seed = replaced(seed, random, ODD)
        road.take(json.dumps(seed).encode())
    assert road.rows > NUM_LINES / 10 and road.refused > NUM_LINES


@pytest.mark.parametrize("kind", ["video_qa", "pure_video"])
@pytest.mark.parametrize("fps", [5e-324, 1e-308, 1e-300, 1e-6])
def test_d17_found_rates_that_floats_cannot_count_with(kind, fps):
    fields = {"video": FRAMES, "fps": fps, "conversations": turns("What?", "A cat.")}
    with pytest.raises(BadSample, match="'fps' is ") as caught:
        make(kind, fields)
    assert caught.value.reason == "malformed_record"


def test_d17_found_wrong_byte_named_behind_a_mark():
    with pytest.raises(BadSample, match=r"^FILE:4: byte 0xff is not UTF-8"):
        decode_json(b'\xef\xbb\xbf{"a":\n"\xff"}', "FILE", 3)


def test_d17_found_lines_that_take_minutes_to_unpack():
    begun = time.monotonic()
    with pytest.raises(BadSample, match="at most 65,535 a side") as caught:
        decode(webp_of_size(14_811_140, 4), "FILE:3: image 'a.webp'")
    assert caught.value.reason == "too_large_media"
    assert time.monotonic() - begun < MAX_SECONDS


def image_files() -> dict[str, bytes]:
    """Returns small files of every format, with what formats can hold besides pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    palette = io.BytesIO()
    Image.new("P", (12, 9)).save(palette, "PNG", transparency=0)
    return {
        "png": encoded("PNG", (12, 9), exif=exif),
        "palette": palette.getvalue(),
        "jpeg": encoded("JPEG", (24, 17), exif=exif, icc_profile=b"profile"),
        "progressive": encoded("JPEG", (24, 17), progressive=True),
        "webp": encoded("WEBP", (12, 9), lossless=True, exif=exif),
        "animation": webp_frames(3),
        "gif": encoded("GIF", (12, 9)),
        "bmp": encoded("BMP", (12, 9)),
    }


@pytest.mark.parametrize("name", image_files())
def test_d17_images_with_changed_bytes(name):
    files = image_files()
    random = np.random.default_rng(len(files[name]))
    others, refused = list(files.values()), 0
    for _ in range(NUM_FILES):
        data = changed(files[name], random, others)
        begun = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)  # as outside pytest
                picture = decode(data, "FILE:3: image 'a.png'")
        except BadSample as error:
            assert str(error).startswith("FILE:3: image 'a.png' ")
            assert error.reason in ("unreadable_media", "too_large_media")
            refused += 1
        else:
            assert picture.mode == "RGB" and min(picture.size) > 0
        assert time.monotonic() - begun < MAX_SECONDS, data
    assert refused > NUM_FILES / 10
