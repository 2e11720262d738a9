"""D12: samples with little or nothing to learn are refused by rule, or train; never a NaN."""

import dataclasses

import numpy as np
import pytest

from metamorph_jax.config.schema_run import DataConfig, SourceConfig
from metamorph_jax.data.example_table import load_or_measure
from metamorph_jax.data.examples import Examples, Records
from metamorph_jax.data.faults import BadSample
from metamorph_jax.data.pipeline import image_loaders
from metamorph_jax.data.rows import blank_example, build_rows, pixel_slots
from metamorph_jax.data.templates import TEMPLATES
from metamorph_jax.trees import flatten
from tests.data_files import small_tokenizer, write_jsonl
from tests.kind_samples import turns
from tests.tiny import tiny_model, tiny_stage
from tests.training_setup import make_setup

P, SIZE = 4, 16  # of the tiny model
SHAPE = {"max_seq_len": 112, "max_images": 3}
BOXES = [{"box": [0, 0, 2, 2]}]
SPELLINGS = "<|eot_id|><|begin_of_text|><image_start>"


def talk(*texts: str, image: str | list[str] = "") -> dict:
    return {"image": image, "conversations": turns(*texts)}


def by(speaker: str) -> dict:
    return {"conversations": [{"from": speaker, "value": "Be brief."}]}


# kind, record, reason
REFUSED = {
    "user only": ("conversation", by("human"), "nothing_to_learn"),
    "system only": ("conversation", by("system"), "wrong_conversation"),
    "assistant only": ("conversation", by("gpt"), "wrong_conversation"),
    "no turns": ("conversation", {"conversations": []}, "malformed_record"),
    "text answer behind the cut": (
        "conversation",
        talk("cat " * 200, "Yes."),
        "nothing_to_learn",
    ),
    "image answer behind the cut": (
        "conversation",
        talk("<image>" * 3, "<image>", image=["a.png"] * 4),
        "nothing_to_learn",
    ),
    "caption empty": ("image_qa", {"image": "a.png", "caption": ""}, "wrong_conversation"),
    "caption of spaces": (
        "text_to_image",
        {"image": "a.png", "caption": " \n\t"},
        "wrong_conversation",
    ),
    "edit without instruction": (
        "image_to_image",
        {"image": ["a.png", "b.png"], "instruction": " "},
        "malformed_record",
    ),
    "thought without an answer": (
        "visual_thinking",
        talk("<image>?", " ", image="a.png") | {"boxes": BOXES},
        "wrong_conversation",
    ),
    "drawing without an image": ("text_to_image", talk("Draw.", ""), "wrong_conversation"),
    "video of one frame": ("pure_video", {"video": ["a.png"]}, "nothing_to_learn"),
}
# record, answers as learned ("E": end of the turn, "I": start and end of an image), answer images
TRAINS = {
    "empty answer": (talk("What is this?", ""), ["", "E"], 0),
    "empty answer in the middle": (
        talk("What is this?", "", "Draw a dog.", "No."),
        ["", "E", "No.", "E"],
        0,
    ),
    "empty last answer": (talk("Hi.", "Hello.", "And?", ""), ["Hello.", "E", "", "E"], 0),
    "empty content list": (
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": []}]},
        ["", "E"],
        0,
    ),
    "all empty": (talk("", ""), ["", "E"], 0),
    "answer of spaces": (talk("What is this?", " \n "), [" \n ", "E"], 0),
    "answer of special spellings": (talk("Q", SPELLINGS), [SPELLINGS, "E"], 0),
    "answer of one tag without image": (talk("Q", "<image>"), ["<image>", "E"], 0),
    "only-image answer": (talk("Draw a dog.", "<image>", image="a.png"), ["I", "E"], 1),
    "answer of two images": (
        talk("Draw.", "<image><image>", image=["a.png", "b.png"]),
        ["I", "I", "E"],
        2,
    ),
    "empty question with an image": (talk("<image>", "", image="a.png"), ["", "E"], 0),
    "last question without an answer": (talk("Q", "A", "And?"), ["A", "E"], 0),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def read(folder, tokenizer, kinds: dict[str, list[dict]]) -> Examples:
    """Returns the examples of records, a source for each kind, over the whole road."""
    sources = tuple(
        SourceConfig(path=str(write_jsonl(folder / f"{kind}.jsonl", records)), kind=kind)
        for kind, records in kinds.items()
    )
    data = DataConfig(sources=sources, **SHAPE)
    loaders = image_loaders(data, SIZE, (0, 0, 0))
    template = TEMPLATES["metamorph_llama3"]
    return Examples(Records(data, "key"), loaders, data, tokenizer, template, P)


@pytest.mark.parametrize("name", REFUSED)
def test_d12_refused(tmp_path, tokenizer, name):
    kind, fields, reason = REFUSED[name]
    examples = read(tmp_path, tokenizer, {kind: [fields]})
    with pytest.raises(BadSample) as caught:
        examples[0]
    assert caught.value.reason == reason
    assert str(caught.value).startswith(f"{tmp_path / kind}.jsonl:1: ")


@pytest.mark.parametrize("name", TRAINS)
def test_d12_trains(tmp_path, tokenizer, name):
    fields, answers, num_images = TRAINS[name]
    (example, is_cut) = read(tmp_path, tokenizer, {"conversation": [fields]})[0]
    names = tokenizer.names
    controls = {"E": [names["<|eot_id|>"]], "I": [names["<image_start>"], names["<image_end>"]]}
    learned = [
        id_
        for answer in answers
        for id_ in (controls[answer] if answer in controls else tokenizer.encode_text(answer))
    ]
    assert example.tokens[example.supervised].tolist() == learned
    assert sum(example.image_is_answer) == num_images
    assert not is_cut


def test_d12_refused_ones_are_counted(tmp_path, tokenizer):
    kinds: dict[str, list[dict]] = {"conversation": [fields for fields, *_ in TRAINS.values()]}
    for kind, fields, _ in REFUSED.values():
        kinds.setdefault(kind, []).append(fields)
    table = load_or_measure(read(tmp_path, tokenizer, kinds), None, num_workers=1)
    assert len(table.usable) == len(TRAINS)
    expected = sorted((kind, reason) for kind, _, reason in REFUSED.values())
    names = list(kinds)
    assert sorted((names[found.source], found.reason) for found in table.findings) == expected


@pytest.fixture(scope="module")
def batch(tmp_path_factory, tokenizer):
    """One row for each sample that trains; one row more is empty, and one begins empty."""
    folder = tmp_path_factory.mktemp("rows")
    examples = read(folder, tokenizer, {"conversation": [case[0] for case in TRAINS.values()]})
    made = [examples[index].example for index in range(len(examples))]
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    filled = [([example], pixels[: len(example.images)]) for example in made]
    filled += [([blank_example(30)], []), ([blank_example(50), made[0]], [])]
    rows = build_rows(filled, pixel_slots(SIZE), num_visual_tokens=P, **SHAPE)
    assert rows["loss_mask"].sum(axis=1)[-2:].tolist() == [0, 1]
    return rows


@pytest.fixture(scope="module", params=["global_batch", "micro_batch"])
def run(request, tokenizer):
    """Returns a function that makes one update of a tiny model and checks that it is finite."""
    model = tiny_model()
    llm = dataclasses.replace(model.llm, vocab_size=tokenizer.vocab_size)
    loss = dataclasses.replace(tiny_stage().loss, mean_over=request.param)
    stage = tiny_stage(loss=loss, global_batch_size=len(TRAINS) + 2)
    setup = make_setup(dataclasses.replace(model, llm=llm), stage)

    def run_one(batch: dict, **changes) -> dict[str, float]:
        (metrics,) = setup.run([batch | changes])
        assert np.isfinite(list(metrics.values())).all(), metrics
        assert metrics["skipped_steps"] == 0
        for path, leaf in flatten(setup.state.params).items():
            assert np.isfinite(np.asarray(leaf)).all(), path
        return metrics

    return run_one


def test_d12_step_without_anything_to_learn(run, batch):
    nothing = {
        "loss_mask": np.zeros_like(batch["loss_mask"]),
        "targets": np.zeros_like(batch["targets"]),
        "visual_target": np.full_like(batch["visual_target"], -1),
    }
    padding = {name: np.zeros_like(batch[name]) for name in ("segment_ids", "positions", "images")}
    padding["visual_index"] = np.full_like(batch["visual_index"], -1)
    for changes in (nothing, nothing | padding):  # samples without answers; rows without samples
        metrics = run(batch, **changes)
        assert metrics["loss"] == metrics["grad_norm"] == 0


def test_d12_step_with_one_loss_only(run, batch):
    for name, absent in (("loss_mask", False), ("visual_target", -1)):
        metrics = run(batch, **{name: np.full_like(batch[name], absent)})
        assert metrics["loss"] != 0 and metrics["grad_norm"] > 0


def test_d12_step_on_rows_of_such_samples(run, batch):
    metrics = run(batch)
    assert metrics["loss"] > 0 and metrics["grad_norm"] > 0
