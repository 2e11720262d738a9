import numpy as np
import pytest

from metamorph_jax.data.conversation import read_conversation
from metamorph_jax.data.example_store import ExampleStore, read_examples
from metamorph_jax.data.templates import TEMPLATES, render_example
from metamorph_jax.errors import UserError
from tests.data_files import record, small_tokenizer, write_jsonl

TEMPLATE = TEMPLATES["metamorph_llama3"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def render(tokenizer, *args, **kwargs):
    return render_example(read_conversation(record(*args, **kwargs)), TEMPLATE, tokenizer, 2)


@pytest.fixture(scope="module")
def examples(tokenizer):
    return [
        render(tokenizer, "Hi", "Hello.", line=1),
        render(tokenizer, "<image> a", "<image><image>", ["1", "2", "3"], line=5),
        render(tokenizer, "<image> b", "yes", ["4"], line=9),
    ]


def test_examples_come_out_as_they_went_in(examples):
    store = ExampleStore([examples[:1], examples[1:]])
    assert len(store) == 3
    for index, example in enumerate(examples):
        found = store[index]
        np.testing.assert_array_equal(found.tokens, example.tokens)
        np.testing.assert_array_equal(found.supervised, example.supervised)
        np.testing.assert_array_equal(found.visual_index, example.visual_index)
        assert found.images == example.images
        assert found.image_is_answer == example.image_is_answer
        assert found.where == example.where


def test_counts(examples):
    store = ExampleStore([examples[:1], examples[1:]])
    assert store.sizes == (1, 2)
    assert [store.source_of(index) for index in range(3)] == [0, 1, 1]
    assert store.lengths.tolist() == [len(example) for example in examples]
    assert store.num_images.tolist() == [0, 3, 1]
    assert store.num_answer_images == 2
    assert store.num_supervised == sum(int(example.supervised.sum()) for example in examples)


def test_fingerprint_sees_every_token_and_image(examples, tokenizer):
    store = ExampleStore([examples])
    assert store.fingerprint == ExampleStore([examples]).fingerprint
    others = [
        render(tokenizer, "<image> c", "yes", ["4"], line=9),
        render(tokenizer, "<image> b", "yes", ["5"], line=9),
    ]
    for other in others:
        assert store.fingerprint != ExampleStore([[*examples[:2], other]]).fingerprint


def test_bad_record_is_named(tmp_path, tokenizer):
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "ok"}]
    path = write_jsonl(
        tmp_path / "data.jsonl",
        [{"image": "a.png", "conversations": turns}, {"conversations": turns}],
    )

    def render_one(conversation):
        return render_example(conversation, TEMPLATE, tokenizer, 2)

    with pytest.raises(UserError, match=r"data\.jsonl:2: the conversation has 1 <image>"):
        list(read_examples(str(path), render_one))
