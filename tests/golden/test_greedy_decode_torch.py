"""Golden case D through the exported PyTorch classes: ids and visual embeddings."""

import functools

import numpy as np
import pytest
import torch

from metamorph_jax.hub import metamorph
from metamorph_jax.hub.remote.configuration_metamorph import MetaMorphConfig
from metamorph_jax.hub.remote.modeling_metamorph import MetaMorphForConditionalGeneration
from tests import golden_model, tolerances
from tests.golden_data import load_case

pytestmark = pytest.mark.golden
FIELDS, TENSORS = load_case("D_greedy_decode")
PROMPTS = {prompt["name"]: prompt for prompt in FIELDS["prompts"]}
CONFIG = FIELDS["config"]
MODEL = golden_model.model_config(CONFIG)
NUM_VISUAL = CONFIG["num_image_tokens"]
PLACEHOLDER = MODEL.llm.vocab_size


def outputs(name):
    return golden_model.with_prefix(TENSORS, f"{name}/outputs/")


@functools.cache
def model():
    config = MetaMorphConfig(
        text_config=CONFIG["llm"],
        vision_config=CONFIG["vision"],
        image_token_id=PLACEHOLDER,
        image_start_token_id=CONFIG["image_start_id"],
        image_end_token_id=CONFIG["image_end_id"],
        num_image_tokens=NUM_VISUAL,
        image_token_reduction=CONFIG["image_token_reduction"],
        normalize_vision=CONFIG["normalize_vision"],
        vision_feature_layer=CONFIG["select_layer"],
        projector_type=CONFIG["projector"],
        vision_head_type=CONFIG["vision_head"],
    )
    weights = golden_model.with_prefix(TENSORS, "weights/")
    tensors = metamorph.to_hf(metamorph.from_hf(weights, MODEL), MODEL, "composite")
    found = MetaMorphForConditionalGeneration(config).eval()
    tensors = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
    found.load_state_dict(tensors, strict=True)
    found.generation_config.eos_token_id = CONFIG["eos_ids"]
    found.generation_config.pad_token_id = CONFIG["eos_ids"][0]
    return found


def prompt_ids(name):
    ids = []
    for token in PROMPTS[name]["prompt_ids"]:
        is_image = token == CONFIG["image_placeholder_id"]
        ids += [PLACEHOLDER] * NUM_VISUAL if is_image else [token]
    return ids


def pixel_values(name):
    """Returns the images of a prompt, [images, 3, height, width]."""
    side = CONFIG["vision"]["image_size"]
    pixels = TENSORS.get(f"{name}/inputs/pixel_values", np.zeros(0, np.float32))
    return torch.tensor(pixels.reshape(-1, 3, side, side))


def painted(name):
    """Returns the visual tokens of the reference's answer, [images, P, E]."""
    none = np.zeros((0, CONFIG["vision"]["hidden_size"]), np.float32)
    tokens = outputs(name).get("visual_embeddings", none)
    return torch.tensor(tokens).reshape(-1, NUM_VISUAL, tokens.shape[-1])


def steps_of(name):
    return [PLACEHOLDER if step == -1 else step for step in PROMPTS[name]["steps"]]


@functools.cache
def answers():
    """Returns (emitted steps, visual tokens) of all prompts, answered as one batch."""
    rows = [prompt_ids(name) for name in PROMPTS]
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    pixels = torch.cat([pixel_values(name) for name in PROMPTS])
    found = model().generate_multimodal(ids, pixels, mask, max_new_tokens=32, max_images=3)
    steps = found.sequences[:, length:].tolist()
    return dict(zip(PROMPTS, zip(steps, found.visual_tokens, strict=True), strict=True))


@pytest.mark.parametrize("name", PROMPTS)
def test_answer(name):
    """All tokens, and to the last digits what is painted."""
    expected = steps_of(name)
    steps, visual = answers()[name]
    assert steps[: len(expected)] == expected
    assert set(steps[len(expected) :]) <= {CONFIG["eos_ids"][0]}
    text = [step for step in expected if step != PLACEHOLDER]
    np.testing.assert_array_equal(text, outputs(name)["emitted_ids"])
    torch.testing.assert_close(visual, painted(name), rtol=0, atol=tolerances.GOLDEN)
    assert len(visual) == {"makes_image": 1, "two_images": 2}.get(name, 0)


@pytest.mark.parametrize("name", PROMPTS)
def test_hidden_states_in_one_pass(name):
    """The reference's own sequence and visual embeddings, read at once."""
    pixels, ids = pixel_values(name), torch.tensor([prompt_ids(name) + steps_of(name)])
    with torch.no_grad():
        read = [model().model.encode_images(pixels)] if len(pixels) else []
        features = torch.cat([*read, painted(name)])
        arguments = {"image_features": features} if len(features) else {}
        hidden = model().model(input_ids=ids, **arguments).last_hidden_state
    expected = outputs(name)["final_hidden_full"]
    tolerance = tolerances.GOLDEN_HIDDEN_FROM_PIXELS if len(pixels) else tolerances.GOLDEN
    np.testing.assert_allclose(hidden.numpy(), expected, rtol=0, atol=tolerance)
