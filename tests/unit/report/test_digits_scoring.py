"""Scores of pictures: real scans are recognised, controls stay at chance, templates do not vary."""

import numpy as np
import pytest

from metamorph_jax.data.digits import enlarge, load_scans, shrink, split
from metamorph_jax.report import digits_scoring as scoring


@pytest.fixture(scope="module")
def scans():
    images, digits = load_scans()
    train, test = split(digits, "test")
    return images[train], digits[train], images[test], digits[test]


def test_real_scans_are_read_and_shuffled_prompts_are_not(scans):
    train, train_digits, test, test_digits = scans
    reader = scoring.DigitReader(train, train_digits)
    found = reader.read(test)
    assert scoring.accuracy(found, test_digits) > 0.97
    assert 0.05 < scoring.shuffled_accuracy(found, test_digits) < 0.15
    drawn = np.stack([shrink(np.asarray(enlarge(scan))) for scan in test])
    assert scoring.accuracy(reader.read(drawn), test_digits) > 0.97


def test_noise_is_not_recognised(scans):
    train, train_digits, _, _ = scans
    reader = scoring.DigitReader(train, train_digits)
    noise = np.random.default_rng(0).random((200, 8, 8))
    assert scoring.accuracy(reader.read(noise), np.arange(200) % 10) < 0.2


def test_partners_are_never_themselves():
    for seed in range(5):
        partner = scoring.partners(17, seed)
        assert sorted(partner) == list(range(17))
        assert not np.any(partner == np.arange(17))
    assert not np.array_equal(scoring.partners(17, 0), scoring.partners(17, 1))


def test_variety_of_templates_is_zero_and_of_scans_is_not(scans):
    _, _, test, digits = scans
    assert 0.08 < scoring.variety(test, digits) < 0.1
    templates = np.stack([test[digits == digit][0] for digit in digits])
    assert scoring.variety(templates, digits) == 0.0
    two = np.stack([np.zeros((8, 8)), np.full((8, 8), 0.5)])
    assert scoring.variety(two, np.array([3, 3])) == pytest.approx(0.25)


def styled(digit, thickness, lean):
    return {"digit": digit, "thickness": thickness, "lean": lean}


def test_style_order_follows_the_pixels():
    bar = np.zeros((8, 8))
    bar[1:7, 3] = 1.0
    right = np.zeros((8, 8))
    right[range(1, 7), range(6, 0, -1)] = 1.0  # the top lies to the right
    requests, pictures = [], []
    for digit in (1, 7):
        for thickness, ink in (("thin", 0.4), ("bold", 1.0)):
            for lean, shape in (
                ("leaning left", right[:, ::-1]),
                ("", bar),
                ("leaning right", right),
            ):
                requests.append(styled(digit, thickness, lean))
                pictures.append(shape * ink)
    good = scoring.style_order(np.stack(pictures), requests)
    assert good["ink_ordered"] and good["slant_ordered"]
    assert (good["ink_digits_ordered"], good["slant_digits_ordered"]) == (2, 2)
    assert good["slant_left"] == pytest.approx(-good["slant_right"])
    mirrored = scoring.style_order(np.stack(pictures)[:, :, ::-1], requests)
    assert mirrored["ink_ordered"] and not mirrored["slant_ordered"]
    assert mirrored["slant_digits_ordered"] == 0


def test_cosines():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(30, 4, 6))
    digits = np.arange(30) % 10
    assert scoring.cosine(tokens, 3 * tokens) == pytest.approx(np.ones(30))
    assert scoring.cosine(tokens, -tokens) == pytest.approx(-np.ones(30))
    assert scoring.nearest_cosine(tokens[:5], tokens) == pytest.approx(np.ones(5))
    one_by_one = [scoring.cosine(tokens[[0]], tokens[[i]])[0] for i in range(1, 30)]
    assert scoring.nearest_cosine(tokens[:1], tokens[1:])[0] == pytest.approx(max(one_by_one))
    means = scoring.class_means(tokens, digits)
    assert means[4] == pytest.approx(tokens[[4, 14, 24]].mean(axis=0))


def test_confusion_counts_what_is_no_digit():
    table = scoring.confusion([3, 3, None, 8], [3, 5, 5, 8])
    assert table.sum() == 4
    assert (table[3, 3], table[5, 3], table[5, 10], table[8, 8]) == (1, 1, 1, 1)
