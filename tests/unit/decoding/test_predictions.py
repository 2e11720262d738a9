"""Held-out pictures: which records, what is asked, and both sides' tokens."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from metamorph_jax.checkpoints.manifest import fingerprint
from metamorph_jax.decoding.features import Encoder
from metamorph_jax.decoding.generator import Generator, Prompt, Sampling
from metamorph_jax.decoding.predictions import load_held_out, predict, save_predictions
from metamorph_jax.errors import UserError
from tests.drawing_run import write_drawing_run


def record(index, question, answer, images=None):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": str(index), "image": images or f"{index}.png", "conversations": turns}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Returns a folder with records, of which every second draws, their images, and a run."""
    folder = tmp_path_factory.mktemp("world")
    write_drawing_run(folder / "run")
    records = []
    for index in range(8):
        Image.new("RGB", (9, 7), (30 * index, 0, 0)).save(folder / f"{index}.png")
        if index % 2:
            records.append(record(index, f"Draw {index}.", "Here: <image>"))
        else:
            records.append(record(index, "<image>\nWhat?", "A cat."))
    records.append(record(8, "<image>\nThe next?", "<image>", ["1.png", "2.png"]))
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def test_records_whose_answer_draws_are_taken_evenly(world):
    every = load_held_out(world / "records.jsonl", world, 99)
    assert [picture.image for picture in every] == ["1.png", "3.png", "5.png", "7.png", "2.png"]
    assert every[0].prompt == "Draw 1."
    assert every[4].prompt == "<image>\nThe next?"
    assert every[4].prompt_images == ((world / "1.png").resolve(),)
    assert every[4].where == f"{world / 'records.jsonl'}:9"
    few = load_held_out(world / "records.jsonl", world, 2)
    assert [picture.image for picture in few] == ["1.png", "5.png"]


def test_no_picture_in_an_answer_is_told(world, tmp_path):
    (tmp_path / "text.jsonl").write_text(json.dumps(record(0, "<image>\nWhat?", "A cat.")) + "\n")
    with pytest.raises(UserError, match=r"text.jsonl: no record whose first answer holds a pict"):
        load_held_out(tmp_path / "text.jsonl", world, 4)
    with pytest.raises(UserError, match="num_pictures=0"):
        load_held_out(world / "records.jsonl", world, 0)


def test_both_sides_are_what_encoder_and_generator_say(world, tmp_path):
    generator = Generator.load(world / "run")
    pictures = load_held_out(world / "records.jsonl", world, 99)
    found = predict(generator, pictures, world)
    encoder = Encoder.load(world / "run")
    expected = encoder.encode_files(world, [picture.image for picture in pictures])
    np.testing.assert_allclose(found.encoded, expected, atol=1e-6)
    assert found.encoder_fingerprint == encoder.fingerprint
    assert found.has_picture.all()
    assert found.answers == ["cat<image>."] * 5
    prompts = [Prompt(picture.prompt, picture.prompt_images) for picture in pictures]
    answers = generator.generate(prompts, Sampling(max_new_tokens=4 + 256, max_images=1))
    for predicted, answer in zip(found.predicted, answers, strict=True):
        np.testing.assert_array_equal(predicted, answer.visual_tokens[0])

    file = tmp_path / "new/predictions.safetensors"
    none = dataclasses.replace(found, has_picture=np.array([True] * 4 + [False]))
    save_predictions(file, none, world, generator.checkpoint)
    with safe_open(file, framework="numpy") as opened:
        assert opened.get_tensor("has_picture").tolist() == [1, 1, 1, 1, 0]
        np.testing.assert_array_equal(opened.get_tensor("encoded"), found.encoded)
        metadata = opened.metadata()
    assert json.loads(metadata["images"]) == ["1.png", "3.png", "5.png", "7.png", "2.png"]
    assert (metadata["step"], metadata["image_root"]) == ("00000004", str(world))
    assert metadata["checkpoint_fingerprint"] == fingerprint(generator.checkpoint)


def test_a_model_that_does_not_draw_has_no_picture(world):
    generator = Generator.load(world / "run", 3)  # fresh parameters: it says anything
    pictures = load_held_out(world / "records.jsonl", world, 1)
    generator._allowed[:] = False
    generator._allowed[list(generator._stop_ids)] = True
    generator.template = dataclasses.replace(generator.template, image_tokens=False)
    found = predict(generator, pictures, world)
    assert not found.has_picture.any()
    assert not found.predicted.any()
