"""Small files for the data tests: a tokenizer folder, image folders, LLaVA records."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from metamorph_jax.data.images import ImageLoader
from metamorph_jax.data.media import Tile
from metamorph_jax.data.records import parse_record
from metamorph_jax.data.rows import build_rows, pixel_slots
from metamorph_jax.data.small_tokenizer import train_tokenizer
from metamorph_jax.data.tokenizer import Tokenizer, load_tokenizer

WORDS = ["user", "assistant", "What is this?", "This is a cat.", "Draw a dog.", "Here it is: "]


def small_tokenizer(folder: Path) -> Tokenizer:
    """Returns a tokenizer that knows a few words, written to `folder`."""
    train_tokenizer(WORDS * 3, 300, folder)
    return load_tokenizer(folder)


def record(question: str, answer: str, images=(), line: int = 1):
    """Returns one record with one question and one answer."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return parse_record({"image": list(images), "conversations": turns}, "data.jsonl", line)


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(fields) + "\n" for fields in records), "utf-8")
    return path


def write_images(folder: Path, count: int, size: int = 4) -> list[str]:
    """Writes `count` images, each of one colour that tells its number; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for index in range(count):
        names.append(f"{index}.png")
        pixels = np.full((size, size, 3), index + 1, np.uint8)
        Image.fromarray(pixels).save(folder / names[-1])
    return names


def write_dataset(folder: Path, count: int, seed: int = 0) -> Path:
    """Writes `count` records: questions about images, requests for images, and plain texts."""
    random = np.random.default_rng(seed)
    names = write_images(folder / "images", 5)
    records = []
    for index in range(count):
        image = f"images/{names[random.integers(5)]}"
        words = " ".join(["cat"] * int(random.integers(1, 9)))
        question, answer, images = [
            (f"<image>\nWhat is this {index}?", words, [image]),
            (f"Draw {words}.", "Here it is: <image>", [image]),
            (f"<image> Draw a dog {index}.", "<image> and <image>.", [image] * 3),
            (f"Say {words}.", f"{words} {index}", []),
        ][index % 4]
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        records.append({"image": images, "conversations": turns})
    return write_jsonl(folder / "data.jsonl", records)


def one_row(examples, images, *, image_size: int, **sizes: int) -> dict[str, np.ndarray]:
    """Returns the arrays of one row; see `build_rows`."""
    rows = build_rows([(examples, images)], pixel_slots(image_size), **sizes)
    return {name: array[0] for name, array in rows.items()}


def anyres_views(image: Image.Image, resolution, size: int, processor="siglip") -> np.ndarray:
    """Returns the views of an image, as the loader of an `anyres` recipe makes them."""
    loader = ImageLoader("", size, "anyres", processor=processor)
    num_tiles = (resolution[0] // size) * (resolution[1] // size)
    tiles = [Tile("a.png", resolution, number) for number in range(num_tiles)]
    return np.stack(loader.fit_all(["a.png", *tiles], image, "f:1: image 'a.png'"))
