"""Scores of the demo on a "model" that is perfect: real scans and their own tokens as answers."""

import dataclasses

import numpy as np
import pytest

from metamorph_jax.data.digits import write_digits
from metamorph_jax.report import digits_results as results
from metamorph_jax.report import digits_sections, digits_sheets, page
from metamorph_jax.report.asking import AnsweredQuestion, judge, load_questions
from metamorph_jax.report.digits_data import (
    PictureRequest,
    is_digits_folder,
    load_requests,
    load_scans,
    matching_requests,
)
from metamorph_jax.report.digits_scoring import DigitReader
from tests.unit.report.page_reader import PageReader, decode_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    return folder


@pytest.fixture(scope="module")
def splits(folder):
    return load_scans(folder, "heldout"), load_scans(folder, "train")


@pytest.fixture(scope="module")
def reader(splits):
    return DigitReader(splits[1].small, splits[1].digits)


def pixels_as_tokens(scans):
    """Returns tokens that differ from scan to scan: its rows, and something in common."""
    return scans.small.reshape(-1, 8, 8) + 0.1


def perfect_answers(scans):
    """Returns each held-out scan as the answer to a request in its own words."""
    requests = [
        PictureRequest(kind, "x", line["digit"], line["thickness"], line["lean"])
        for line in scans.records
        for kind in [("class" if not line["thickness"] + line["lean"] else "styled")]
    ]
    everything_formed = np.ones(len(requests), bool)
    return results.Drawn(requests, pixels_as_tokens(scans), everything_formed)


def test_folder_is_recognised_and_every_scan_has_a_request(folder, splits, tmp_path):
    assert is_digits_folder(folder)
    assert not is_digits_folder(tmp_path)
    heldout, train = splits
    assert (len(heldout.digits), len(train.digits)) == (360, 1437)
    requests = load_requests(folder, heldout)
    assert [sum(r.kind == kind for r in requests) for kind in ("class", "styled", "edit")] == [
        100,
        80,
        100,
    ]
    for line, index in zip(heldout.records, matching_requests(heldout, requests), strict=True):
        request = requests[index]
        assert (request.digit, request.thickness) == (line["digit"], line["thickness"])
        assert request.lean == line["lean"]
    for request in requests:
        if request.kind == "edit":
            shown = heldout.paths.index(request.image.relative_to(folder).as_posix())
            assert (heldout.digits[shown] + 1) % 10 == request.digit


def test_perfect_pictures_score_high_and_controls_stay_at_chance(splits, reader):
    heldout, _ = splits
    drawn = perfect_answers(heldout)
    painted = results.read_pictures(reader, list(heldout.pictures))
    scores = results.picture_scores(drawn, painted, painted, heldout)
    assert scores["generation_accuracy"] > 0.95
    assert scores["styled_accuracy"] > 0.95
    assert scores["reconstruction_accuracy"] > 0.97
    assert scores["reconstruction_mse"] == 0.0
    assert 0.05 < scores["shuffled_prompt_accuracy"] < 0.15
    assert scores["style_order"]["ink_ordered"] and scores["style_order"]["slant_ordered"]
    assert scores["style_order"]["ink_digits_ordered"] == 10
    variety = scores["variety"]
    assert variety["painted_from_real_tokens"] == variety["real_heldout_scans"] > 0.05


def test_malformed_answers_are_never_recognised(splits, reader):
    heldout, _ = splits
    drawn = perfect_answers(heldout)
    broken = dataclasses.replace(drawn, well_formed=np.zeros(360, bool))
    painted = results.read_pictures(reader, list(heldout.pictures))
    scores = results.picture_scores(broken, painted, painted, heldout)
    assert scores["generation_accuracy"] == scores["styled_accuracy"] == 0.0


def test_swapped_pictures_score_low(splits, reader):
    heldout, _ = splits
    drawn = perfect_answers(heldout)
    painted = results.read_pictures(reader, list(heldout.pictures[::-1]))
    scores = results.picture_scores(drawn, painted, painted, heldout)
    assert scores["styled_accuracy"] < 0.25
    assert scores["reconstruction_accuracy"] < 0.25


def test_cosine_of_class_means_is_its_own_baseline(splits):
    heldout, train = splits
    features, train_features = pixels_as_tokens(heldout), pixels_as_tokens(train)
    means = np.stack([train_features[train.digits == digit].mean(axis=0) for digit in range(10)])
    drawn = perfect_answers(heldout)
    averages = dataclasses.replace(drawn, tokens=means[heldout.digits])
    scores = results.token_scores(averages, heldout, features, train, train_features)
    assert scores["cosine"] == pytest.approx(scores["cosine_class_mean_baseline"])
    assert scores["cosine_own_class_mean"] == pytest.approx(1.0)
    assert scores["cosine_global_mean_baseline"] < scores["cosine_class_mean_baseline"] < 1
    exact = results.token_scores(drawn, heldout, features, train, train_features)
    assert exact["cosine_nearest_heldout"] == pytest.approx(1.0)
    assert exact["well_formed_fraction"] == 1.0


def test_questions_about_digits_are_judged_and_confused(folder):
    questions = load_questions(folder / "heldout_questions.jsonl", folder)
    labels = frozenset(q.label for q in questions if q.kind == "digit")
    answered = []
    for item in questions:
        said = item.expected if item.label != "three" else "It is an eight."
        known = labels if item.kind == "digit" else frozenset({item.label})
        answered.append(AnsweredQuestion(item, said, judge(item, said, known)))
    scores = results.understanding_scores(answered)
    assert scores["understanding_accuracy_by_kind"]["parity"] == 1.0
    assert scores["understanding_accuracy"] == pytest.approx(0.9, abs=0.02)
    said, right = results.said_digits(answered)
    assert len(said) == 360
    assert {s for s, r in zip(said, right, strict=True) if r == 3} == {8}
    figure = digits_sections.confusion_figure(answered)
    assert decode_figure(figure)


def decode_figure(figure):
    return PageReader(figure).images[0].startswith("data:image/svg+xml")


def test_no_digit_or_two_digits_is_none(folder):
    question = load_questions(folder / "heldout_questions.jsonl", folder, 1)[0]
    answers = ["It is a cat.", "a one or a two", "A One."]
    said, _ = results.said_digits([AnsweredQuestion(question, text, False) for text in answers])
    assert said == [None, None, 1]


def test_sheets_show_every_digit(folder, splits, reader):
    heldout, train = splits
    requests = load_requests(folder, heldout)
    features = pixels_as_tokens(heldout)
    formed = np.arange(len(requests)) != 5
    drawn = results.Drawn(requests, features[: len(requests)], formed)
    painted = results.read_pictures(reader, list(heldout.pictures[: len(requests)]))
    again = results.read_pictures(reader, list(heldout.pictures))
    summary = results.token_scores(drawn, heldout, features, train, pixels_as_tokens(train))
    summary |= results.picture_scores(drawn, painted, again, heldout)
    summary |= {"understanding_accuracy": 0.97, "num_class_prompts": 100}
    summary |= {"classifier_accuracy": 0.989}
    sheets = [
        digits_sheets.class_prompts_figure(drawn, painted, heldout),
        digits_sheets.styled_figure(drawn, painted),
        digits_sheets.edits_figure(drawn, painted),
        digits_sheets.reconstruction_figure(again, heldout, summary),
    ]
    assert [len(PageReader(sheet).images) for sheet in sheets] == [20, 80, 50, 10]
    for sheet in sheets:
        assert decode_image(PageReader(sheet).images[0]).height >= 32
    written = page.render(
        "x",
        "y",
        [digits_sections.summary_section(summary, 360), digits_sections.controls_section(summary)],
    )
    text = PageReader(written).text
    assert "97.0\u00a0% (349 of 360)" in text
    assert "98.9\u00a0%" in text
    assert text.count("✗ no") >= 2  # these pictures do not follow their prompts
