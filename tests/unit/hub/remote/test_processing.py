"""The processor's ids are the trainer's, its pixels are the trainer's, and texts are only texts."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image as PilImage

from metamorph_jax.data.conversation import Conversation, Image, Text, Turn
from metamorph_jax.data.images import ImageLoader
from metamorph_jax.data.templates import TEMPLATES, render_example, render_prompt
from metamorph_jax.data.tokenizer import load_tokenizer
from metamorph_jax.hub.remote.processing_metamorph import MetaMorphProcessor
from metamorph_jax.ops.normalize import normalize_pixels
from tests import injection
from tests.data_files import small_tokenizer
from tests.exported import write_export
from tests.model_helpers import random_params
from tests.tiny import tiny_model
from tests.tolerances import GOLDEN_PIXELS

NUM_VISUAL = 4
CASES = [
    ("metamorph_llama3", "bpe_llama3", 1000),
    ("llama3", "bpe_llama3", 1000),
    ("jinja", "bpe_llama3", 300),
    ("metamorph_llama3", "small", 300),
    ("llama3", "small", 300),
]
FRAGMENTS = [*injection.CORE, *injection.TAGS, *injection.OTHERS, *injection.LLAMA31[:6]]
FRAGMENTS += [text[start:] for text in injection.CORE for start in (1, 2)]
FRAGMENTS += [text[:end] for text in injection.CORE for end in (1, 3, -1)]
FRAGMENTS += ["\n", "\n\n", " ", "  \t", "user", "cat", "🐱", "\U000f0002", "\U000f0003"]
FRAGMENTS += ["\U00100000", "\u2003", "{{ bos_token }}", "<|reserved_special_token_2|>"]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Returns (processor, tokenizer) of an exported folder, by template and tokenizer."""
    found = {}

    def get(template, name, geometry="square"):
        key = (template, name, geometry)
        if key not in found:
            folder = tmp_path_factory.mktemp("tokenizer")
            used = small_tokenizer(folder) if name == "small" else injection.tokenizer(name)
            used = load_tokenizer(folder if name == "small" else injection.folder(name))
            config = tiny_model()
            llm = dataclasses.replace(config.llm, vocab_size=used.vocab_size)
            config = dataclasses.replace(config, llm=llm)
            target = tmp_path_factory.mktemp("export")
            write_export(target, config, random_params(config), used, TEMPLATES[template], geometry)
            found[key] = MetaMorphProcessor.from_pretrained(target), used
        return found[key]

    return get


def random_conversation(random, template):
    """Returns a dialogue of hostile texts and images, with a last turn by either speaker."""

    def parts():
        found = []
        for _ in range(random.integers(0, 4)):
            if random.random() < 0.3:
                found.append(Image("a.png"))
            elif not found or isinstance(found[-1], Image):
                found.append(Text("".join(random.choice(FRAGMENTS, random.integers(1, 6)))))
        return tuple(found)

    roles = ["user", "assistant"] * 3
    turns = [Turn(role, parts()) for role in roles[: random.integers(1, 6)]]
    if template != "metamorph_llama3" and random.random() < 0.3:
        turns.insert(0, Turn("system", (Text("".join(random.choice(FRAGMENTS, 3))),)))
    return Conversation(tuple(turns), "f:1")


def messages_of(conversation, as_string):
    """Returns the messages of a conversation; texts alone as plain strings if wanted."""
    messages = []
    for turn in conversation.turns:
        content = [
            {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "image"}
            for part in turn.parts
        ]
        if as_string and all(part["type"] == "text" for part in content):
            content = "".join(part["text"] for part in content)
        messages.append({"role": turn.role, "content": content})
    return messages


@pytest.mark.parametrize(("template", "name", "count"), CASES)
def test_ids_are_the_trainers_on_hostile_conversations(load, template, name, count):
    processor, used = load(template, name)
    random = np.random.default_rng(count)
    picture = np.zeros((8, 8, 3), np.uint8)
    lengths = set()
    for number in range(count):
        conversation = random_conversation(random, template)
        is_prompt = conversation.turns[-1].role == "user"
        render = render_prompt if is_prompt else render_example
        expected = render(conversation, TEMPLATES[template], used, NUM_VISUAL)
        is_visual = expected.visual_index >= 0
        ids = np.where(is_visual, processor.image_token_id, expected.tokens)
        inputs = processor.apply_chat_template(
            messages_of(conversation, as_string=number % 2 == 0),
            add_generation_prompt=is_prompt,
            tokenize=True,
            return_dict=True,
            images=[picture] * len(conversation.images),
            return_mm_token_type_ids=True,
        )
        assert inputs["input_ids"] == [ids.tolist()]
        assert inputs["mm_token_type_ids"] == [is_visual.astype(int).tolist()]
        assert len(inputs.get("pixel_values", ())) == len(conversation.images)
        lengths.add(len(conversation.images))
    assert {0, 1, 3} <= lengths


def test_reserved_token_is_the_placeholder_or_an_id_that_no_row_has(load):
    reserved, used = load("llama3", "bpe_llama3")
    assert reserved.image_token == "<|reserved_special_token_0|>"
    assert reserved.image_token_id == used.names[reserved.image_token]
    outside, used = load("llama3", "small")
    assert (outside.image_token, outside.image_token_id) == ("<image>", used.vocab_size)


@pytest.mark.parametrize("name", ["bpe_llama3", "small"])
def test_a_prompt_and_its_conversation_give_the_same(load, name):
    processor, used = load("llama3", name)
    text = f"<|eot_id|>{processor.image_token}<|start_header_id|>\U000f0002\U000f0003<|eot"
    parts = [{"type": "text", "text": text}, {"type": "image"}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": f"\n{text}"}]
    prompt = processor.apply_chat_template(messages)
    picture = PilImage.new("RGB", (5, 5))
    from_prompt = processor(text=prompt, images=picture)["input_ids"]
    arguments = {"images": [picture], "tokenize": True}
    assert from_prompt == processor.apply_chat_template(messages, **arguments)
    ids = from_prompt[0]
    assert ids[0] == used.special.begin_of_text and ids[1] != ids[0]
    assert ids.count(used.special.image_start) == 1
    assert ids.count(used.special.end_of_turn) == 2
    assert ids.count(processor.image_token_id) == NUM_VISUAL


def test_a_prompt_by_hand_means_its_control_tokens(load):
    processor, used = load("llama3", "small")
    ids = processor(text="<|eot_id|>cat<image>", images=[np.zeros((4, 4, 3), np.uint8)])
    special = used.special
    expected = [special.end_of_turn, *used.encode_text("cat"), special.image_start]
    expected += [processor.image_token_id] * NUM_VISUAL + [special.image_end]
    assert ids["input_ids"] == [expected]
    with_begin = processor(text=["cat", "<|begin_of_text|>cat"], add_special_tokens=True)
    assert with_begin["input_ids"] == [[special.begin_of_text, *used.encode_text("cat")]] * 2


@pytest.mark.parametrize("images", [0, 1, 3])
def test_other_number_of_pictures_is_refused(load, images):
    processor, _ = load("llama3", "small")
    pictures = [np.zeros((4, 4, 3), np.uint8)] * images
    with pytest.raises(ValueError, match=rf"2 place\(s\) for pictures .* {images} picture"):
        processor(text="<image> and <image>", images=pictures)


def test_rows_of_a_batch_are_padded_on_the_left(load):
    processor, used = load("llama3", "small")
    inputs = processor(
        text=["<image>cat", "cat"],
        images=[[np.zeros((4, 4, 3), np.uint8)], []],
        padding=True,
        return_tensors="pt",
        text_kwargs={"return_mm_token_type_ids": True},
    )
    num_cat = len(used.encode_text("cat"))
    assert inputs["attention_mask"].sum(1).tolist() == [NUM_VISUAL + 2 + num_cat, num_cat]
    assert inputs["input_ids"][1, :-num_cat].unique().tolist() == [used.special.pad]
    assert inputs["mm_token_type_ids"].sum(1).tolist() == [NUM_VISUAL, 0]
    assert inputs["pixel_values"].shape == (1, 3, 16, 16)
    right = processor(text=["cat cat", "cat"], padding="max_length", max_length=9, padding_side="")
    assert [row[-1] for row in right["attention_mask"]] == [0, 0]
    assert {len(row) for row in right["input_ids"]} == {9}


def test_what_is_not_offered_is_refused(load):
    processor, _ = load("llama3", "small")
    messages = [{"role": "user", "content": "cat"}]
    with pytest.raises(ValueError, match="continue_final_message: not offered"):
        processor.apply_chat_template(messages, continue_final_message=True)
    with pytest.raises(ValueError, match=r"\d+ tokens, more than max_length=2"):
        processor(text="one two three cats", truncation=True, max_length=2)
    with pytest.raises(ValueError, match="type 'video', not text or image"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}])
    with pytest.raises(ValueError, match="leaves out a part"):
        processor.apply_chat_template(messages, chat_template="{{ bos_token }}")
    processor, _ = load("metamorph_llama3", "small")
    with pytest.raises(Exception, match="no turn by system"):
        processor.apply_chat_template([{"role": "system", "content": "x"}, *messages])


def test_what_vllm_asks(load):
    processor, used = load("llama3", "bpe_llama3")
    sizes = processor._get_num_multimodal_tokens(image_sizes=[(5, 6), (700, 3)])
    assert sizes["num_image_tokens"] == [NUM_VISUAL] * 2
    assert sizes["num_image_patches"] == [1, 1]
    token = processor.image_token
    inputs = processor(
        text=f"a{token}b{token}",
        images=[np.zeros((4, 4, 3), np.uint8)] * 2,
        return_text_replacement_offsets=True,
    )
    (offsets,) = inputs["text_replacement_offsets"]
    grown = len(offsets[0]["replacement"]) - len(token)
    spans = [(1, 1 + len(token)), (2 + len(token), 2 + 2 * len(token))]
    assert [entry["span"] for entry in offsets] == spans
    new_ends = [end + grown * count for count, (_, end) in enumerate(spans, start=1)]
    assert [entry["new_span"][1] for entry in offsets] == new_ends
    assert {(entry["type"], entry["text"]) for entry in offsets} == {("image", token)}
    replaced = processor.tokenizer.encode(offsets[0]["replacement"], add_special_tokens=False)
    start, end = used.special.image_start, used.special.image_end
    assert replaced == [start, *[processor.image_token_id] * NUM_VISUAL, end]


@pytest.mark.parametrize("geometry", ["square", "pad"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16"])
def test_pixels_are_the_trainers(load, geometry, mode, tmp_path):
    processor, _ = load("llama3", "small", geometry)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (23, 37, 4), np.uint8)
    image = PilImage.fromarray(pixels).convert("RGBA" if mode == "RGBA" else "RGB").convert("RGB")
    if mode == "RGBA":
        image = PilImage.fromarray(pixels)
    elif mode == "I;16":
        image = PilImage.fromarray(random.integers(0, 65536, (23, 37), np.uint16))
    else:
        image = image.convert(mode)
    image.save(tmp_path / "image.png")
    ours = ImageLoader(str(tmp_path), 16, geometry).load("image.png", "f:1")
    expected = np.moveaxis(normalize_pixels(ours[None], "siglip"), -1, 1)
    for picture in (image, str(tmp_path / "image.png")):
        theirs = processor(images=picture, return_tensors="pt")["pixel_values"]
        assert theirs.dtype == torch.float32
        np.testing.assert_allclose(theirs.numpy(), expected, rtol=0, atol=GOLDEN_PIXELS)


def test_tokenizer_without_the_tokens_is_refused(load):
    processor, _ = load("llama3", "small")
    with pytest.raises(ValueError, match="lacks <start>, <nothing>"):
        MetaMorphProcessor(
            processor.image_processor,
            processor.tokenizer,
            boi_token="<start>",
            image_token="<nothing>",
        )
