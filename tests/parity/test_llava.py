"""Whole LLaVA models of `transformers`, read in both spellings of their names: the logits of packed
examples with none, one and three images, and every tensor back as it came.

Rows are built as for training: records are rendered, packed and stacked by the data road. Theirs
run one example at a time, a placeholder for each visual token, with the pixels our model makes.
"""

import re

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from metamorph_jax.data.conversation import read_conversation
from metamorph_jax.data.templates import TEMPLATES, render_example
from metamorph_jax.hub import metamorph
from metamorph_jax.hub.configs import read_model_config
from metamorph_jax.hub.layouts import find_layout, to_own
from metamorph_jax.models.metamorph import MetaMorph
from metamorph_jax.ops.normalize import normalize_pixels
from tests import tolerances
from tests.data_files import one_row, record, small_tokenizer
from tests.model_helpers import quick_jit
from tests.parity.torch_models import largest_differences, randomise

SIZE, MAX_SEQ_LEN = 12, 640
CONVERSATIONS = [
    ("What is this?", "This is a cat.", 0),
    ("<image>\nWhat is this?", "a cat", 1),
    ("<image> <image>\nWhat? <image>", "cat cat", 3),
]
TEXT = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 640}
VISION = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 3}
VISION |= {"num_attention_heads": 2, "image_size": SIZE, "patch_size": 4}


def hf_config(name: str, vocab_size: int) -> transformers.LlavaConfig:
    """Returns LLaVA-1.5's kind ("clip+llama") or LLaVA-Interleave's ("siglip+qwen2"), tiny."""
    text, vision = TEXT | {"vocab_size": vocab_size}, VISION
    if name == "clip+llama":
        return transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(**text),
            vision_config=transformers.CLIPVisionConfig(**vision, projection_dim=8),
            image_token_index=vocab_size - 1,
        )
    return transformers.LlavaConfig(
        text_config=transformers.Qwen2Config(**text, tie_word_embeddings=True),
        vision_config=transformers.SiglipVisionConfig(**vision, vision_use_head=False),
        image_token_index=vocab_size - 1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def create_model(name: str, tokenizer) -> transformers.LlavaForConditionalGeneration:
    config = hf_config(name, tokenizer.vocab_size + 1)
    config._attn_implementation = "eager"
    return randomise(transformers.LlavaForConditionalGeneration(config), 0)


def checkpoint(model, layout: str, folder) -> dict[str, np.ndarray]:
    """Returns the tensors as the model names them in memory, or as its file does."""
    if layout == "composite":
        tensors = {name: t.numpy() for name, t in model.state_dict().items()}
    else:
        model.save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors")
    assert find_layout(tensors) == layout
    return tensors


def examples_and_images(tokenizer, num_visual_tokens: int):
    """Returns the examples of one row, and the pixels of each."""
    rng = np.random.default_rng(0)
    examples, images = [], []
    for question, answer, count in CONVERSATIONS:
        names = [f"{i}.png" for i in range(count)]
        conversation = read_conversation(record(question, answer, names))
        template = TEMPLATES["v1"]
        examples.append(render_example(conversation, template, tokenizer, num_visual_tokens))
        images.append([rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for _ in range(count)])
    return examples, images


def their_logits(model, example, images, family: str) -> np.ndarray:
    is_visual = example.visual_index >= 0
    ids = np.where(is_visual, model.config.image_token_index, example.tokens)
    arguments = {"input_ids": torch.tensor(ids[None].astype(np.int64))}
    if images:
        pixels = np.asarray(normalize_pixels(np.stack(images), family))
        arguments["pixel_values"] = torch.tensor(np.moveaxis(pixels, -1, 1))
    with torch.no_grad():
        return model(**arguments).logits[0].numpy()


def differences(model, tensors, layout: str, tokenizer) -> dict[str, float]:
    """Returns the largest difference of the logits by number of images; checks the way back."""
    config = read_model_config(model.config.to_dict())
    assert config.vision_head == "none" and not config.visual_tokens.normalize
    params = metamorph.from_hf(tensors, config, layout)
    assert_same_tensors(metamorph.to_hf(params, config, layout), tensors, layout)
    num_visual = config.visual_tokens.num_tokens
    examples, images = examples_and_images(tokenizer, num_visual)
    flat = [image for own in images for image in own]
    sizes = {"max_seq_len": MAX_SEQ_LEN, "max_images": len(flat), "image_size": SIZE}
    row = one_row(examples, flat, num_visual_tokens=num_visual, **sizes)
    batch = {name: array[None] for name, array in row.items()}

    @quick_jit
    def logits(params):
        module = MetaMorph(config)
        hidden = module.apply({"params": params}, batch).hidden
        return module.apply({"params": params}, hidden, method="logits")

    ours = np.asarray(logits(params))[0, :, : config.llm.vocab_size]
    pairs = {}
    for segment, (example, own) in enumerate(zip(examples, images, strict=True), start=1):
        theirs = their_logits(model, example, own, config.vision.family)
        assert 0.1 < np.abs(theirs).max() < 10
        pairs[f"{len(own)} images"] = ours[row["segment_ids"] == segment], theirs
    return largest_differences(pairs)


@pytest.mark.parametrize("layout", ["llava", "composite"])
@pytest.mark.parametrize("name", ["clip+llama", "siglip+qwen2"])
def test_logits_and_tensors(name, layout, tokenizer, tmp_path):
    model = create_model(name, tokenizer)
    found = differences(model, checkpoint(model, layout, tmp_path), layout, tokenizer)
    assert len(found) == len(CONVERSATIONS)
    for images, difference in found.items():
        assert difference <= tolerances.PARITY, images


def assert_same_tensors(ours, theirs, layout: str) -> None:
    """Every tensor that the model reads comes back bit for bit, in a spelling of the layout."""
    ours = {to_own(layout, name): tensor for name, tensor in ours.items()}
    theirs = {to_own(layout, name): tensor for name, tensor in theirs.items()}
    assert set(ours) <= set(theirs)
    unread = {own.name for own in set(theirs) - set(ours)}
    assert all(re.match(r"post_layernorm|encoder\.layers\.2\.|lm_head", name) for name in unread)
    for own, tensor in ours.items():
        assert tensor.dtype == theirs[own].dtype
        assert tensor.tobytes() == np.ascontiguousarray(theirs[own]).tobytes(), own
