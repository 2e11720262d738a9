"""The exported PyTorch classes against our model: values, and answers of text and pictures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from metamorph_jax.config.schema_model import RopeScaling, VisualTokensConfig
from metamorph_jax.data.templates import TEMPLATES
from metamorph_jax.decoding.generator import Generator, Prompt, Sampling
from metamorph_jax.hub.remote.modeling_metamorph import MetaMorphForConditionalGeneration
from metamorph_jax.hub.remote.processing_metamorph import MetaMorphProcessor
from metamorph_jax.models.metamorph import MetaMorph
from tests import tolerances
from tests.data_files import small_tokenizer
from tests.exported import write_export
from tests.model_helpers import quick_jit, random_params
from tests.scripted_model import VISUAL, scripted_config, scripted_params
from tests.tiny import tiny_model

ROWS, LENGTH, NUM_VISUAL = 2, 20, 4
MIN_COSINE = 0.9999


def variant(llm=(), vision=(), **changes):
    base = tiny_model()
    llm = dataclasses.replace(base.llm, vocab_size=300, **dict(llm))
    vision = dataclasses.replace(base.vision, **dict(vision))
    return dataclasses.replace(base, llm=llm, vision=vision, **changes)


LLAMA3_ROPE = RopeScaling(kind="llama3", factor=8.0, original_max_seq_len=16)
CONFIGS = {
    "as published": variant(),
    "llama3 rope, tied": variant(llm={"rope_scaling": LLAMA3_ROPE, "tie_embeddings": True}),
    "linear": variant(
        llm={"rope_scaling": RopeScaling(kind="linear", factor=4.0)},
        connector="linear",
        vision_head="linear",
    ),
    "deep": variant(
        vision={"num_layers": 3, "feature_layer": -2, "norm_eps": 1e-3},
        connector="mlp3x_gelu",
        vision_head="mlp2x_gelu",
    ),
    "plain features": variant(
        vision={"image_size": 8},
        visual_tokens=VisualTokensConfig(reduction="none", num_tokens=4, normalize=False),
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def exported(config, params, tokenizer, folder):
    """Returns (model, processor) of what an export writes."""
    write_export(folder, config, params, tokenizer)
    model, info = MetaMorphForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval(), MetaMorphProcessor.from_pretrained(folder)


def random_batch(config, num_images, seed):
    """Returns rows with `num_images` images each, at places of their own, in our form."""
    random = np.random.default_rng(seed)
    size = config.vision.image_size
    batch = {
        "tokens": random.integers(0, 280, (ROWS, LENGTH)),
        "visual_index": np.full((ROWS, LENGTH), -1),
        "segment_ids": np.ones((ROWS, LENGTH), np.int32),
        "positions": np.tile(np.arange(LENGTH), (ROWS, 1)),
        "images": random.normal(size=(ROWS, num_images, size, size, 3)).astype(np.float32),
    }
    for row in range(ROWS):
        for image in range(num_images):
            first = image * (NUM_VISUAL + 2) + 1 + row
            index = np.arange(NUM_VISUAL) + image * NUM_VISUAL
            batch["visual_index"][row, first : first + NUM_VISUAL] = index
    return batch


def our_values(config, params, batch):
    """Returns features, projected, hidden states, logits and predictions."""
    model = MetaMorph(config)

    def run(params):
        def call(method, *args):
            return model.apply({"params": params}, *args, method=method)

        shape = (ROWS, 0, NUM_VISUAL, config.visual_dim)
        has_images = batch["images"].shape[1] > 0
        features = call("encode", batch["images"]) if has_images else jnp.zeros(shape)
        projected = call("connect", features)
        embeddings = call("embed", batch["tokens"], batch["visual_index"], projected)
        hidden = call("decode", embeddings, batch["segment_ids"], batch["positions"])
        return features, projected, hidden, call("logits", hidden), call("predict_visual", hidden)

    return jax.device_get(quick_jit(run)(jax.tree.map(jnp.asarray, params)))


@torch.no_grad()
def their_values(model, batch):
    ids = np.where(batch["visual_index"] >= 0, model.config.image_token_id, batch["tokens"])
    flat = batch["images"].reshape(-1, *batch["images"].shape[2:])
    pixels = torch.tensor(np.moveaxis(flat, -1, 1))
    has_images = {"pixel_values": pixels} if len(flat) else {}
    outputs = model(input_ids=torch.tensor(ids), **has_images)
    hidden = outputs.last_hidden_state
    values = [hidden, outputs.logits, model.model.predict_visual(hidden)]
    if len(flat):
        features = model.get_image_features(pixels)
        values = [features.last_hidden_state, features.pooler_output, *values]
    return [value.numpy() for value in values], outputs


@pytest.mark.parametrize("num_images", [0, 1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_values(name, num_images, tokenizer, tmp_path):
    config = CONFIGS[name]
    params = random_params(config, seed=num_images)
    batch = random_batch(config, num_images, seed=num_images)
    model, _ = exported(config, params, tokenizer, tmp_path)
    theirs, _ = their_values(model, batch)
    features, projected, hidden, logits, predicted = our_values(config, params, batch)
    ours = [hidden, logits[..., : config.llm.vocab_size], predicted]
    if num_images:
        shape = (ROWS * num_images, NUM_VISUAL, -1)
        ours = [features.reshape(shape), projected.reshape(shape), *ours]
    assert len(ours) == len(theirs)
    for our_value, their_value in zip(ours, theirs, strict=True):
        assert 0.1 < np.abs(our_value).max() < 20
        np.testing.assert_allclose(their_value, our_value, rtol=0, atol=tolerances.PARITY)


def test_other_attentions_cache_and_hidden_states(tokenizer, tmp_path):
    config = CONFIGS["as published"]
    params, batch = random_params(config), random_batch(config, 2, seed=0)
    model, _ = exported(config, params, tokenizer, tmp_path)
    expected, outputs = their_values(model, batch)
    eager = MetaMorphForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.config.vision_config._attn_implementation == "eager"
    assert model.config.vision_config._attn_implementation == "sdpa"
    for ours, theirs in zip(their_values(eager.eval(), batch)[0], expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerances.FLOAT32_REORDERED * 5)
    ids = torch.tensor(batch["tokens"])
    with torch.no_grad():
        whole = model(input_ids=ids, output_hidden_states=True)
        half = model(input_ids=ids[:, :9], use_cache=True)
        rest = model(input_ids=ids[:, 9:], past_key_values=half.past_key_values, logits_to_keep=1)
    assert len(whole.hidden_states) == config.llm.num_layers + 1
    assert torch.equal(whole.hidden_states[-1], whole.last_hidden_state)
    assert rest.logits.shape[1] == 1
    tolerance = tolerances.DECODED_HIDDEN
    torch.testing.assert_close(rest.logits[:, 0], whole.logits[:, -1], rtol=0, atol=tolerance)
    assert outputs.last_hidden_state.shape == (ROWS, LENGTH, config.llm.embed_dim)


def prompts(size=16):
    random = np.random.default_rng(0)
    image = lambda: random.integers(0, 256, (size, size, 3), dtype=np.uint8)  # noqa: E731
    return [
        Prompt("Draw a dog."),
        Prompt("<image>\nWhat is this?", (image(),)),
        Prompt("cat " * 9),
        Prompt("<image> and <image>", (image(), image())),
    ]


def ask(model, processor, asked, **options):
    """Returns per prompt (ids of the answer, visual tokens)."""
    conversations = []
    for prompt in asked:
        first, *rest = prompt.text.split("<image>")
        content = [{"type": "text", "text": first}]
        for image, text in zip(prompt.images, rest, strict=True):
            content += [{"type": "image", "image": image}, {"type": "text", "text": text}]
        conversations.append([{"role": "user", "content": content}])
    inputs = processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
    )
    answers = model.generate_multimodal(**inputs, **options)
    sequences = answers.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    return list(zip(sequences, [tokens.numpy() for tokens in answers.visual_tokens], strict=True))


def check_answer(answer, theirs, model):
    ids, visual = theirs
    ours = [model.config.image_token_id if step == -1 else step for step in answer.steps]
    assert ids[: len(ours)] == ours
    assert set(ids[len(ours) :]) <= {model.generation_config.pad_token_id}
    assert visual.shape == answer.visual_tokens.shape
    cosine = (visual * answer.visual_tokens).sum(-1)
    assert (cosine >= MIN_COSINE).all()
    np.testing.assert_allclose(
        visual, answer.visual_tokens, rtol=0, atol=tolerances.DECODED_VISUAL_TOKENS
    )


def test_greedy_answers_are_the_generators(tokenizer, tmp_path):
    """Random weights, with an output head that often begins an image."""
    config = CONFIGS["as published"]
    params = random_params(config, seed=3)
    start = tokenizer.special.image_start
    params["language_model"]["lm_head"]["kernel"][:, start] *= 2
    model, processor = exported(config, params, tokenizer, tmp_path)
    arrays = jax.tree.map(jnp.asarray, params)
    generator = Generator(config, arrays, tokenizer, TEMPLATES["metamorph_llama3"])
    asked = prompts()
    answers = generator.generate(asked, Sampling(max_new_tokens=30, max_images=2))
    theirs = ask(model, processor, asked, max_new_tokens=30, max_images=2)
    assert len({len(answer.visual_tokens) for answer in answers}) > 1
    for prompt, answer, together in zip(asked, answers, theirs, strict=True):
        check_answer(answer, together, model)
        (alone,) = ask(model, processor, [prompt], max_new_tokens=30, max_images=2)
        check_answer(answer, alone, model)


@pytest.mark.parametrize(("limit", "max_images"), [(25, 4), (25, 1), (25, 0), (6, 4), (5, 4)])
def test_rules_of_mixed_answers(limit, max_images, tokenizer, tmp_path):
    """An answer that goes on with images, and one id that no answer may contain."""
    special = tokenizer.special
    (dot,) = tokenizer.encode_text(".")
    (line,) = tokenizer.encode_text("\n")
    header = tokenizer.names["<|start_header_id|>"]
    wanted = [special.image_end, header, special.image_start, dot]
    script = {line: wanted, special.image_end: wanted, dot: [*wanted, special.end_of_turn]}
    # The model would rather stop inside of its images, and go on after them.
    script[VISUAL] = [special.end_of_turn, dot]
    config = scripted_config(tokenizer.vocab_size, max_seq_len=64)
    params = scripted_params(config, script)
    model, processor = exported(config, params, tokenizer, tmp_path)
    arrays = jax.tree.map(jnp.asarray, params)
    generator = Generator(config, arrays, tokenizer, TEMPLATES["metamorph_llama3"])
    asked = [Prompt("Draw a dog."), Prompt("cat")]
    answers = generator.generate(asked, Sampling(max_new_tokens=limit, max_images=max_images))
    theirs = ask(model, processor, asked, max_new_tokens=limit, max_images=max_images)
    images = min(max_images, limit // (NUM_VISUAL + 2))
    assert len(answers[0].visual_tokens) == images
    for answer, found in zip(answers, theirs, strict=True):
        check_answer(answer, found, model)


def test_teacher_forced_and_repeated(tokenizer, tmp_path):
    """What was generated, read again in one pass, predicts itself."""
    config = CONFIGS["as published"]
    params = random_params(config, seed=3)
    start = tokenizer.special.image_start
    params["language_model"]["lm_head"]["kernel"][:, start] *= 4
    model, _ = exported(config, params, tokenizer, tmp_path)
    ids = torch.tensor([[1, 2, 3, 4]])
    answers = model.generate_multimodal(ids, max_new_tokens=30, max_images=2)
    (visual,) = answers.visual_tokens
    assert len(visual) == 2
    with torch.no_grad():
        outputs = model(input_ids=answers.sequences, image_features=visual)
        predicted = model.model.predict_visual(outputs.last_hidden_state)
    is_visual = answers.sequences[0] == model.config.image_token_id
    found = predicted[0, :-1][is_visual[1:]].reshape(visual.shape)
    tolerance = tolerances.DECODED_VISUAL_TOKENS
    torch.testing.assert_close(found, visual, rtol=0, atol=tolerance)


def test_draws(tokenizer, tmp_path):
    config = CONFIGS["as published"]
    model, processor = exported(config, random_params(config), tokenizer, tmp_path)

    def draw(seed, **options):
        generator = torch.Generator().manual_seed(seed)
        options = {"do_sample": True, "generator": generator, "max_new_tokens": 12} | options
        return [ids for ids, _ in ask(model, processor, prompts()[:2], **options)]

    assert draw(0) == draw(0) != draw(1)
    greedy = [ids for ids, _ in ask(model, processor, prompts()[:2], max_new_tokens=12)]
    assert draw(0, top_p=1e-6) == draw(1, temperature=1e-6) == greedy


def test_generate_is_text_alone(tokenizer, tmp_path):
    """Even for a model that wants to paint; all beams see all images of their row."""
    config = CONFIGS["as published"]
    params = random_params(config, seed=3)
    special = tokenizer.special
    params["language_model"]["lm_head"]["kernel"][:, special.image_start] *= 9
    model, processor = exported(config, params, tokenizer, tmp_path)
    ids, _ = ask(model, processor, prompts()[:1], max_new_tokens=12)[0]
    assert special.image_start in ids
    random = np.random.default_rng(1)
    pictures = random.integers(0, 256, (3, 16, 16, 3), np.uint8)
    text = ["<image>what<image>", "<image>this is a cat"]
    arguments = {"return_tensors": "pt", "padding": True}
    inputs = processor(text=text, images=list(pictures), **arguments)
    options = {"max_new_tokens": 8, "num_return_sequences": 2, "num_beams": 2}
    model.generation_config.suppress_tokens = None  # what a folder without the file has
    found = model.generate(**inputs, **options)
    new = found[:, inputs["input_ids"].shape[1] :]
    image_ids = torch.tensor([special.image_start, special.image_end])
    assert not torch.isin(new, image_ids).any()
    alone = processor(text=text[:1], images=list(pictures[:2]), **arguments)
    expected = model.generate(**alone, **options)
    expected = expected[:, alone["input_ids"].shape[1] :]
    assert torch.equal(new[:2, : expected.shape[1]], expected)


def test_what_does_not_fit_is_refused(tokenizer, tmp_path):
    config = variant(llm={"max_seq_len": 8})
    model, _ = exported(config, random_params(config), tokenizer, tmp_path)
    place = model.config.image_token_id
    ids, pixels = torch.tensor([[1, *[place] * NUM_VISUAL]]), torch.zeros(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"4 places .* 2 image\(s\) of 4 visual tokens"):
        model(input_ids=ids, pixel_values=pixels)
    with pytest.raises(ValueError, match=r"4 places .* 0 image\(s\)"):
        model(input_ids=ids)
    with pytest.raises(ValueError, match=r"\[2, 1, 3, 16, 16\]; expected all images"):
        model(input_ids=ids, pixel_values=pixels[:, None])
    with pytest.raises(ValueError, match="12x16 pixels have 12 patches"):
        model(input_ids=ids, pixel_values=pixels[:1, :, :12])
    with pytest.raises(ValueError, match="pixel_values or image_features, not both"):
        model(input_ids=ids, pixel_values=pixels, image_features=torch.zeros(1, 4, 8))
    with pytest.raises(ValueError, match="padded on the right"):
        mask = torch.tensor([[1, 1, 0]])
        model.generate_multimodal(torch.tensor([[1, 2, 0]]), attention_mask=mask)
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        model.generate_multimodal(torch.tensor([[1]]), max_new_tokens=0)
    with pytest.raises(ValueError, match="9 tokens, which leaves none of the model's 8"):
        model.generate_multimodal(torch.ones(1, 9, dtype=torch.long))
