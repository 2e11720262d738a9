"""How pictures of digits and predicted visual tokens are judged: pure functions over arrays.

Pictures come as 8x8 scans with intensities 0 to 1 (`data.digits.shrink`), the resolution of the
original data. What is judged, and against which controls, is decided in `digits_results.py`.
"""

from collections.abc import Sequence

import numpy as np

from metamorph_jax.data.digits import measure
from metamorph_jax.typing import Float, Integer

Scans = Float[np.ndarray, "count 8 8"]
Digits = Integer[np.ndarray, "count"]
Tokens = Float[np.ndarray, "count P E"]


class DigitReader:
    """A support vector machine that reads digits; it has seen real training scans only.

    Args:
        scans: real training scans.
        digits: what they show.
    """

    def __init__(self, scans: Scans, digits: Digits):
        from sklearn.svm import SVC

        # Source: scikit-learn's own example on this data, where intensities run from 0 to 16.
        self._machine = SVC(gamma=0.001).fit(_features(scans), digits)

    def read(self, scans: Scans) -> Digits:
        """Returns the digit each scan shows."""
        if not len(scans):
            return np.zeros(0, np.int64)
        return self._machine.predict(_features(scans))


def _features(scans: Scans) -> Float[np.ndarray, "count 64"]:
    return np.asarray(scans, np.float64).reshape(len(scans), 64) * 16


def accuracy(found: Sequence, expected: Sequence) -> float:
    """Returns the fraction of equal entries; 0 for none at all."""
    return sum(a == b for a, b in zip(found, expected, strict=True)) / max(len(found), 1)


def partners(count: int, seed: int = 0) -> Integer[np.ndarray, "count"]:
    """Returns for each prompt another one, never itself: one random cycle through all of them."""
    order = np.random.default_rng(seed).permutation(count)
    partner = np.empty(count, np.int64)
    partner[order] = np.roll(order, -1)
    return partner


def shuffled_accuracy(found: Digits, asked: Digits, seed: int = 0) -> float:
    """Returns how often a picture shows the digit of *another* prompt of the pool.

    The control for recognition: about 10 % if pictures follow their prompts and the pool has all
    ten digits alike, whatever a reader that sees digits everywhere would say.
    """
    return accuracy(found, asked[partners(len(asked), seed)])


def variety(scans: Scans, digits: Digits) -> float:
    """Returns the mean squared pixel distance between two pictures of the same digit.

    Over all pairs; intensities run from 0 to 1. A model that draws one template per digit has 0.
    """
    total, pairs = 0.0, 0
    for digit in np.unique(digits):
        flat = scans[digits == digit].reshape(-1, 64)
        distances = np.mean((flat[:, None] - flat[None]) ** 2, axis=-1)
        total += float(distances.sum())
        pairs += len(flat) * (len(flat) - 1)
    return total / max(pairs, 1)


def style_order(scans: Scans, requests: Sequence[dict]) -> dict[str, float | bool | int]:
    """Returns whether style words move ink and slant the way they say.

    Args:
        scans: pictures, one for each request.
        requests: with `digit`, `thickness` ("thin", "bold", "") and `lean` ("leaning left",
            "leaning right", "").

    Returns:
        Means per word, `<property>_ordered` for the means over all digits, and the number of digits
        for which the order holds on its own.
    """
    measured = np.array([measure(scan) for scan in scans]).reshape(-1, 2)
    digits = np.array([request["digit"] for request in requests])
    result: dict[str, float | bool | int] = {}
    for column, name, field, low, high in (
        (0, "ink", "thickness", "thin", "bold"),
        (1, "slant", "lean", "leaning left", "leaning right"),
    ):
        words = np.array([request.get(field, "") for request in requests])
        values = measured[:, column]
        means = {word: float(values[words == word].mean()) for word in (low, high)}
        result |= {f"{name}_{word.split()[-1]}": mean for word, mean in means.items()}
        result[f"{name}_ordered"] = means[high] > means[low]
        result[f"{name}_digits_ordered"] = sum(
            bool(
                values[(words == high) & (digits == digit)].mean()
                > values[(words == low) & (digits == digit)].mean()
            )
            for digit in np.unique(digits)
        )
    return result


def cosine(tokens: Tokens, others: Tokens) -> Float[np.ndarray, "count"]:
    """Returns the mean over P of the cosine between corresponding visual tokens."""
    return np.mean(np.sum(_unit(tokens) * _unit(others), axis=-1), axis=-1)


def nearest_cosine(tokens: Tokens, pool: Tokens) -> Float[np.ndarray, "count"]:
    """Returns the largest `cosine` of each entry with any entry of `pool`."""
    mine, theirs = (_unit(x).reshape(len(x), -1) for x in (tokens, pool))
    return (mine @ theirs.T).max(axis=1) / tokens.shape[1]


def class_means(tokens: Tokens, digits: Digits) -> Float[np.ndarray, "10 P E"]:
    """Returns the mean tokens of each digit: a "prediction" that knows the class and no more."""
    return np.stack([tokens[digits == digit].mean(axis=0) for digit in range(10)])


def _unit(tokens: Tokens) -> Tokens:
    return tokens / np.maximum(np.linalg.norm(tokens, axis=-1, keepdims=True), 1e-12)


def confusion(found: Sequence, expected: Sequence[int]) -> Integer[np.ndarray, "10 11"]:
    """Returns counts: rows are what is right, columns what was said; the last is "no digit"."""
    table = np.zeros((10, 11), np.int64)
    for said, right in zip(found, expected, strict=True):
        table[right, 10 if said is None else said] += 1
    return table
