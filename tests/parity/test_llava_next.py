"""Anyres from an image file to logits, against Hugging Face's LLaVA-NeXT and LLaVA-OneVision.

Ours is the whole road: records, views, rows, tower, connector, newline, decoder. Theirs gets the
text of our rows, an image token for each position of an image, and the pixels of its own processor.
Reference: transformers 5.23 with small random weights.
"""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from metamorph_jax.config.schema_data import DataConfig, SourceConfig
from metamorph_jax.config.schema_model import VisualTokensConfig
from metamorph_jax.data.pipeline import TrainingData
from metamorph_jax.data.templates import TEMPLATES
from metamorph_jax.hub import metamorph
from metamorph_jax.models.metamorph import MetaMorph
from tests import tolerances
from tests.data_files import small_tokenizer, write_jsonl
from tests.model_helpers import quick_jit
from tests.parity.torch_models import randomise
from tests.tiny import tiny_model

TILE, PATCH, SIDE, VOCAB = 16, 4, 4, 400
IMAGE_TOKEN = VOCAB - 1
SIZES = [(40, 30), (97, 31), (20, 90), (16, 16), (7, 33), (150, 149)]
GRIDS = {
    "anyres": ("(1x2),(2x1),(2x2),(3x1),(1x3)", [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]),
    "anyres_max_2": ("(1x1),...,(3x3)", [(c, r) for c in (1, 2, 3) for r in (1, 2, 3)]),
}


def their_model(geometry):
    """Returns their model, and their processor."""
    vision = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": TILE, "patch_size": PATCH}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": VOCAB}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
    pinpoints = [[rows * TILE, columns * TILE] for columns, rows in GRIDS[geometry][1]]
    fields = {"text_config": transformers.LlamaConfig(**text), "image_token_index": IMAGE_TOKEN}
    fields |= {"image_grid_pinpoints": pinpoints, "vision_feature_layer": 1}
    if geometry == "anyres":
        fields |= {"vision_config": transformers.CLIPVisionConfig(**vision)}
        config = transformers.LlavaNextConfig(**fields, vision_feature_select_strategy="default")
        model = transformers.LlavaNextForConditionalGeneration(config)
        size = {"shortest_edge": TILE}
        crop = {"height": TILE, "width": TILE}
        processor = LlavaNextImageProcessorPil(
            size=size, crop_size=crop, image_grid_pinpoints=pinpoints
        )
        return randomise(model, 0), processor
    fields |= {"vision_config": transformers.SiglipVisionConfig(**vision, vision_use_head=False)}
    config = transformers.LlavaOnevisionConfig(
        **fields, vision_feature_select_strategy="full", vision_aspect_ratio=geometry
    )
    model = transformers.LlavaOnevisionForConditionalGeneration(config)
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": TILE, "width": TILE},
        image_grid_pinpoints=pinpoints,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return randomise(model, 0), processor


def our_model(geometry, theirs):
    """Returns our configuration, and their parameters in it."""
    tiny = tiny_model()
    is_clip = geometry == "anyres"
    config = dataclasses.replace(
        tiny,
        llm=dataclasses.replace(tiny.llm, vocab_size=VOCAB, max_seq_len=512),
        vision=dataclasses.replace(
            tiny.vision,
            family="clip" if is_clip else "siglip",
            feature_layer=1,
            norm_eps=1e-5 if is_clip else 1e-6,
        ),
        visual_tokens=VisualTokensConfig(reduction="none", num_tokens=SIDE * SIDE, normalize=False),
        image_newline=True,
        vision_head="none",
    )
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    return config, metamorph.from_hf(tensors, config, "composite")


def write_world(folder):
    """Writes one question about an image of each size; returns the data's configuration."""
    random = np.random.default_rng(0)
    records = []
    for number, (width, height) in enumerate(SIZES):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        turns = [{"from": "human", "value": f"<image>\nWhat is {number}?"}]
        turns += [{"from": "gpt", "value": "This is a cat."}]
        records.append({"image": f"{number}.png", "conversations": turns})
    return SourceConfig(path=str(write_jsonl(folder / "data.jsonl", records)))


def our_rows(folder, geometry, family):
    """Returns one row per image, and the number of the image of each."""
    tokenizer = small_tokenizer(folder / "tokenizer")
    data = TrainingData(
        DataConfig(
            sources=(write_world(folder),),
            max_seq_len=256,
            max_images=10,
            packing=False,
            image_geometry=geometry,
            image_grid_pinpoints=GRIDS[geometry][0],
        ),
        tokenizer,
        TEMPLATES["llama3"],
        image_size=TILE,
        num_visual_tokens=SIDE * SIDE,
        seed=0,
        stage_name="one",
        global_batch_size=len(SIZES),
        processor=family,
    )
    assert tokenizer.vocab_size < IMAGE_TOKEN
    assert data.describe()["cut_examples"] == data.describe()["bad_examples"] == 0
    return data.batch(0), [int(where.rpartition(":")[2]) - 1 for where in data.sample_ids(0)]


def their_logits(model, processor, folder, number, ids):
    """Returns the embeddings of an image, and the logits at every position."""
    image = Image.open(folder / f"{number}.png").convert("RGB")
    inputs = processor(image, return_tensors="pt")
    with torch.no_grad():
        features = model.get_image_features(
            pixel_values=inputs["pixel_values"], image_sizes=inputs["image_sizes"]
        )
        output = model(input_ids=torch.tensor(ids)[None].long(), **inputs)
    features = features if isinstance(features, list | tuple) else features.pooler_output
    return features[0].numpy(), output.logits[0].numpy()


@pytest.mark.parametrize("geometry", GRIDS)
def test_from_files_to_logits(geometry, tmp_path):
    theirs, processor = their_model(geometry)
    config, params = our_model(geometry, theirs)
    batch, numbers = our_rows(tmp_path, geometry, config.vision.family)
    assert sorted(numbers) == list(range(len(SIZES)))
    assert ("visual_sources" in batch) == (geometry == "anyres_max_2")

    def run(params, batch):
        def call(method, *args):
            return MetaMorph(config).apply({"params": params}, *args, method=method)

        mixture = None
        if "visual_sources" in batch:
            mixture = batch["visual_sources"], batch["visual_weights"]
        visual = call("connect", call("encode", batch["images"]))
        embeddings = call("embed", batch["tokens"], batch["visual_index"], visual, mixture)
        return embeddings, call("logits", call("__call__", batch).hidden)

    embeddings, logits = map(np.asarray, quick_jit(run)(params, batch))
    num_mixed = 0
    for row, number in enumerate(numbers):
        used = batch["segment_ids"][row] > 0
        is_image = used & (batch["visual_index"][row] != -1)
        ids = np.where(is_image, IMAGE_TOKEN, batch["tokens"][row])[used]
        features, expected = their_logits(theirs, processor, tmp_path, number, ids)
        ours = embeddings[row, is_image]
        assert ours.shape == features.shape and 0.1 < np.abs(features).max() < 10
        np.testing.assert_allclose(ours, features, rtol=0, atol=tolerances.PARITY)
        ours = logits[row, used][:, :VOCAB]
        np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerances.PARITY)
        if "visual_weights" in batch:
            num_mixed += int((batch["visual_weights"][row].max(axis=-1) % 1 > 0).any())
    assert num_mixed == {"anyres": 0, "anyres_max_2": 3}[geometry]
