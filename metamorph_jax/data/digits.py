"""Writes the demo data set: scikit-learn's 1,797 scanned digits as images and conversations.

    python -m metamorph_jax.data.digits --out DIR [--holdout=validation]

The same command writes the same bytes. Style words are measured from the pixels, relative to other
training scans of the same digit. The sentences are in `digits_texts.py`.
"""

import argparse
import dataclasses
import json
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from metamorph_jax.data import digits_texts as texts
from metamorph_jax.data.digits_texts import Description
from metamorph_jax.data.small_tokenizer import train_tokenizer
from metamorph_jax.errors import UserError, run_main
from metamorph_jax.typing import Float, Integer, Shaped

IMAGE_SIZE = 32
NUM_TEST, NUM_VALIDATION = 360, 240
VOCAB_SIZE = 512
_SPLIT_SEED = 0

_README = """# Scanned digits as conversations

{num_train} training scans and {num_heldout} held-out scans ({holdout} split), 32x32 pixels.

| file | records |
|---|---|
{table}

`tokenizer/` is a byte-level BPE of {vocab_size} ids with the Llama-3 splitting rule and special
tokens. Image paths are relative to this folder.

Fields of `heldout_questions.jsonl` besides the conversation: `kind`, `digit`, and `label`, the word
that a right answer contains. `prompts.jsonl`: `kind` is "class" or "styled". `ink` is the mean
intensity of the 8x8 scan (0 to 1), `slant` is positive when it leans right; `thickness` ("thin",
"bold") and `lean` ("leaning left", "leaning right") name the outer thirds of the training scans of
the same digit, and are empty in the middle third.

Written by `python -m metamorph_jax.data.digits`, which writes the same bytes again.

The scans are those of scikit-learn's `load_digits`: the test part of E. Alpaydin and C. Kaynak,
"Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49, licensed CC BY 4.0. Changed here: enlarged to 32x32 pixels by
bicubic interpolation.
"""


@dataclasses.dataclass(frozen=True)
class Scan:
    """One scanned digit.

    Attributes:
        image: path relative to the data folder.
        description: style words and digit.
        ink: see `measure`.
        slant: see `measure`.
    """

    image: str
    description: Description
    ink: float
    slant: float


def measure(image8: Float[np.ndarray, "8 8"]) -> tuple[float, float]:
    """Returns how much ink an 8x8 digit has and how it leans.

    Args:
        image8: intensities from 0 (paper) to 1 (ink).

    Returns:
        The mean intensity, and the slant by second moments: how many pixels the strokes move to the
        right for each pixel they rise; 0 for an empty image.
    """
    total = float(image8.sum())
    if total <= 0:
        return 0.0, 0.0
    rows, columns = np.mgrid[:8, :8].astype(np.float64)
    rows -= (rows * image8).sum() / total
    columns -= (columns * image8).sum() / total
    height = float((rows * rows * image8).sum())
    slant = -float((rows * columns * image8).sum()) / height if height > 0 else 0.0
    return total / 64, slant


def shrink(image: Integer[np.ndarray, "height width 3"]) -> Float[np.ndarray, "8 8"]:
    """Returns a picture as an 8x8 scan with intensities 0 to 1, each the mean of its cell."""
    height, width, _ = image.shape
    cells = image.mean(axis=-1).reshape(8, height // 8, 8, width // 8)
    return cells.mean(axis=(1, 3)) / 255


def enlarge(image8: Float[np.ndarray, "8 8"]) -> Image.Image:
    """Returns a scan (0 to 1) as a 32x32 grey RGB picture."""
    pixels = np.round(image8 * 255).astype(np.uint8)
    large = Image.fromarray(pixels).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return large.convert("RGB")


def split(
    labels: Integer[np.ndarray, "count"], holdout: str
) -> tuple[Integer[np.ndarray, "train"], Integer[np.ndarray, "heldout"]]:
    """Returns the indices of training and held-out scans, both with all digits in proportion.

    `test` holds out 360 of the 1,797; `validation` holds out 240 of the 1,437 others and does not
    touch the 360, so that recipes can be chosen without them.
    """
    from sklearn.model_selection import train_test_split

    def divide(indices, size):
        kept, held = train_test_split(
            indices, test_size=size, stratify=labels[indices], random_state=_SPLIT_SEED
        )
        return np.sort(kept), np.sort(held)

    train, test = divide(np.arange(len(labels)), NUM_TEST)
    return (train, test) if holdout == "test" else divide(train, NUM_VALIDATION)


def load_scans() -> tuple[Float[np.ndarray, "count 8 8"], Shaped[np.ndarray, "count"]]:
    """Returns scikit-learn's scans with intensities 0 to 1, and their digits.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "the digits come with scikit-learn, which is not installed; "
            "install the `report` extra: pip install -e '.[report]'"
        ) from None
    data = load_digits()
    return data.images / 16.0, data.target


def describe_scans(
    images: Float[np.ndarray, "count 8 8"],
    labels: Integer[np.ndarray, "count"],
    train: Integer[np.ndarray, "train"],
) -> list[Scan]:
    """Returns all scans with style words; thirds are those of training scans of the same digit."""
    measured = np.array([measure(image) for image in images])
    scans = []
    for index, digit in enumerate(labels):
        peers = measured[train[labels[train] == digit]]
        low, high = np.quantile(peers, [1 / 3, 2 / 3], axis=0)
        ink, slant = measured[index]
        description = Description(
            int(digit),
            _outer_third(ink, low[0], high[0], ("thin", "bold")),
            _outer_third(slant, low[1], high[1], ("leaning left", "leaning right")),
        )
        scans.append(Scan(f"images/{index:04d}.png", description, float(ink), float(slant)))
    return scans


def _outer_third(value: float, low: float, high: float, words: tuple[str, str]) -> str:
    if value < low:
        return words[0]
    return words[1] if value > high else ""


def _conversation(identity: str, images: list[str], said: tuple[str, str], **extra) -> dict:
    question, answer = said
    return {
        "id": identity,
        "image": images[0] if len(images) == 1 else images,
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        **extra,
    }


def understanding_records(scans: Sequence[Scan]) -> list[dict]:
    """Returns questions about each scan: its digit twice, every other kind once."""
    records = []
    for scan in scans:
        random_ = _random("understanding", scan)
        for kind in scan.description.labels:
            count = 2 if kind == "digit" else 1
            for wording in random_.sample(range(len(texts.QUESTIONS[kind])), count):
                identity = f"{scan.image}-{kind}-{wording}"
                said = texts.question(scan.description, kind, wording)
                records.append(_conversation(identity, [scan.image], said))
    return records


def generation_records(scans: Sequence[Scan]) -> list[dict]:
    """Returns two image requests that each scan answers."""
    records = []
    for scan in scans:
        random_ = _random("generation", scan)
        for index in range(2):
            said = texts.request(scan.description, random_)
            records.append(_conversation(f"{scan.image}-request-{index}", [scan.image], said))
    return records


def edit_records(scans: Sequence[Scan]) -> list[dict]:
    """Returns, for each scan, a request for the next digit, answered by a random scan of it."""
    by_digit = [[scan for scan in scans if scan.description.digit == digit] for digit in range(10)]
    records = []
    for scan in scans:
        random_ = _random("edit", scan)
        target = random_.choice(by_digit[(scan.description.digit + 1) % 10])
        said = texts.edit(random_)
        records.append(_conversation(f"{scan.image}-next", [scan.image, target.image], said))
    return records


def caption_records(scans: Sequence[Scan]) -> list[dict]:
    """Returns two captions of each scan: with style words, and of its digit alone."""
    records = []
    for scan in scans:
        digit = texts.WORDS[scan.description.digit]
        for kind, caption in (
            ("rich", scan.description.styled),
            ("class", f"a handwritten {digit}"),
        ):
            identity = f"{scan.image}-{kind}"
            records.append(_conversation(identity, [scan.image], ("<image>", caption)))
    return records


def heldout_question_records(scans: Sequence[Scan]) -> list[dict]:
    """Returns one question of each kind about each scan, with the labels to judge answers by."""
    records = []
    for scan in scans:
        random_ = _random("heldout", scan)
        for kind, label in scan.description.labels.items():
            wording = random_.randrange(len(texts.QUESTIONS[kind]))
            said = texts.question(scan.description, kind, wording)
            extra = {"kind": kind, "digit": scan.description.digit, "label": label}
            records.append(_conversation(f"{scan.image}-{kind}", [scan.image], said, **extra))
    return records


def _random(purpose: str, scan: Scan) -> random.Random:
    return random.Random(f"{_SPLIT_SEED}/{purpose}/{scan.image}")


def write_digits(folder: Path, holdout: str = "test") -> dict[str, int]:
    """Writes the data set; returns the number of records of each file.

    Args:
        folder: created if missing; files of an earlier run are overwritten.
        holdout: `test` or `validation`, see `split`.

    Raises:
        UserError: scikit-learn is not installed.
    """
    images, labels = load_scans()
    train_indices, heldout_indices = split(labels, holdout)
    scans = describe_scans(images, labels, train_indices)
    train = [scans[index] for index in train_indices]
    heldout = [scans[index] for index in heldout_indices]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index in sorted([*train_indices, *heldout_indices]):
        enlarge(images[index]).save(folder / scans[index].image)
    files = {
        "understanding.jsonl": understanding_records(train),
        "generation.jsonl": generation_records(train),
        "edits.jsonl": edit_records(train),
        "captions.jsonl": caption_records(train),
        "heldout_questions.jsonl": heldout_question_records(heldout),
        "heldout_generation.jsonl": generation_records(heldout),
        "heldout_images.jsonl": [_image_fields(scan) for scan in heldout],
        "train_images.jsonl": [_image_fields(scan) for scan in train],
        "prompts.jsonl": texts.evaluation_prompts(),
    }
    for name, records in files.items():
        _write_jsonl(folder / name, records)
    vocab_size = train_tokenizer(_training_texts(files), VOCAB_SIZE, folder / "tokenizer")
    counts = {name: len(records) for name, records in files.items()}
    readme = _README.format(
        num_train=len(train),
        num_heldout=len(heldout),
        holdout=holdout,
        table="\n".join(f"| `{name}` | {count} |" for name, count in counts.items()),
        vocab_size=vocab_size,
    )
    (folder / "README.md").write_text(readme, "utf-8")
    return counts


def _write_jsonl(path: Path, records: Sequence[dict]) -> None:
    """Writes one record a line; whoever reads the file finds it complete, old or new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _image_fields(scan: Scan) -> dict:
    fields = dataclasses.asdict(scan.description)
    return {"image": scan.image, **fields, "ink": scan.ink, "slant": scan.slant}


def _training_texts(files: dict[str, list[dict]]) -> Iterable[str]:
    """Yields the texts that the tokenizer learns its words from, cut as they will be used."""
    yield from ("user", "assistant", "system") * 100
    for name in ("understanding.jsonl", "generation.jsonl", "edits.jsonl", "captions.jsonl"):
        for record in files[name]:
            for turn in record["conversations"]:
                yield from turn["value"].split("<image>")


def main(arguments: Sequence[str]) -> None:
    """The command line: see the module docstring.

    Raises:
        UserError: see `write_digits`.
    """
    parser = argparse.ArgumentParser(prog="python -m metamorph_jax.data.digits")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--holdout",
        choices=("test", "validation"),
        default="test",
        help="which scans are held out: the 360 of the test split, or 240 of the others",
    )
    options = parser.parse_args(arguments)
    for name, count in write_digits(options.out, options.holdout).items():
        print(f"{options.out / name}: {count} records")


if __name__ == "__main__":
    run_main(main)
