"""From a run's folder to answers, in order, whatever shares a batch."""

import copy
import dataclasses
import shutil

import jax
import numpy as np
import pytest

from metamorph_jax.checkpoints.folders import find_checkpoints
from metamorph_jax.data.rows import build_rows, pixel_slots
from metamorph_jax.data.templates import TEMPLATES
from metamorph_jax.decoding.generator import Generator, Prompt, Sampling
from metamorph_jax.errors import UserError
from metamorph_jax.models.init import init_params
from metamorph_jax.models.metamorph import MetaMorph
from tests import tolerances
from tests.data_files import small_tokenizer
from tests.scripted_model import VISUAL, scripted_config, scripted_params
from tests.tiny_run import tiny_config, write_tiny_run

TEMPLATE = TEMPLATES["metamorph_llama3"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def random_generator(tokenizer):
    """Returns a generator with random weights; sampled, it says anything."""
    config = tiny_config().model
    return Generator(config, init_params(config, jax.random.key(0)), tokenizer, TEMPLATE)


def scripted_generator(tokenizer, script, **changes):
    """Returns a generator that says `script`: last text (or id) -> next ids or one-id texts."""

    def id_of(word):
        if not isinstance(word, str):
            return word
        (id_,) = tokenizer.encode_text(word)
        return id_

    config = scripted_config(tokenizer.vocab_size, **changes)
    table = {id_of(state): [id_of(word) for word in wanted] for state, wanted in script.items()}
    return Generator(config, scripted_params(config, table), tokenizer, TEMPLATE)


def mixed_prompts(size=32):
    random = np.random.default_rng(0)
    image = lambda: random.integers(0, 256, (size, size, 3), dtype=np.uint8)  # noqa: E731
    return [
        Prompt("Draw a dog."),
        Prompt("What is this?", (image(),)),
        Prompt("cat " * 30),
        Prompt("<image> and <image>", (image(), image())),
        Prompt(""),
        Prompt("This is a cat."),
        Prompt("<image>", (image(),)),
        Prompt("Here it is: " * 3),
    ]


def test_answer_of_text_and_a_picture(tokenizer):
    special = tokenizer.special
    script = {"\n": [" cat"], " cat": [special.image_start], VISUAL: [special.image_end]}
    script |= {special.image_end: ["."], ".": [special.end_of_turn]}
    (answer,) = scripted_generator(tokenizer, script).generate([Prompt("Draw a cat.")])
    assert answer.text == " cat<image>."
    assert answer.ids[1:3] == [special.image_start, special.image_end]
    assert answer.steps.count(-1) == 4
    assert answer.visual_tokens.shape == (1, 4, 8)
    assert (answer.finish, answer.well_formed) == ("end_of_turn", True)


def test_control_ids_of_templates_are_never_said(tokenizer):
    special = tokenizer.special
    headers = [tokenizer.names[f"<|{name}_header_id|>"] for name in ("start", "end")]
    control = [*headers, special.begin_of_text]
    past_tokenizer = tokenizer.vocab_size  # an id that the model has and the tokenizer has not
    script = {"\n": [past_tokenizer, *control, "."], ".": [special.end_of_text]}
    generator = scripted_generator(tokenizer, script)
    assert generator.config.llm.padded_vocab_size > past_tokenizer
    (answer,) = generator.generate([Prompt("Hi")])
    assert (answer.text, answer.finish, answer.well_formed) == (".", "end_of_turn", False)


def test_max_images_and_max_new_tokens(tokenizer):
    special = tokenizer.special
    script = {"\n": [special.image_start, "."], VISUAL: [special.image_end], ".": ["."]}
    script |= {special.image_end: [special.image_start, "."]}
    generator = scripted_generator(tokenizer, script)
    (two,) = generator.generate([Prompt("?")], Sampling(max_new_tokens=20, max_images=2))
    assert two.text == "<image><image>" + "." * 8
    assert (len(two.steps), two.finish) == (20, "length")
    (none,) = generator.generate([Prompt("?")], Sampling(max_new_tokens=5))
    assert none.text == "....."


def test_answers_end_at_the_models_length(tokenizer):
    script = {"\n": ["."], ".": ["."]}
    generator = scripted_generator(tokenizer, script, max_seq_len=40)
    (answer,) = generator.generate([Prompt("Hi")])
    prompt = generator._read(Prompt("Hi"), 0, Sampling()).example
    assert len(answer.steps) == 40 - len(prompt)
    assert answer.finish == "length"


def test_prompt_that_leaves_no_room_is_refused(tokenizer):
    generator = scripted_generator(tokenizer, {}, max_seq_len=40)
    with pytest.raises(UserError, match=r"prompt 2 has \d+ tokens.*max_seq_len=40.*shorten"):
        generator.generate([Prompt("Hi"), Prompt("cat " * 40)])


def test_eight_mixed_prompts_equal_eight_single_ones(random_generator):
    prompts, sampling = mixed_prompts(), Sampling(max_new_tokens=16)
    together = random_generator.generate(prompts, sampling)
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = random_generator.generate([prompt], sampling)
        assert answer.steps == alone.steps
        np.testing.assert_allclose(
            answer.visual_tokens,
            alone.visual_tokens,
            rtol=0,
            atol=tolerances.DECODED_VISUAL_TOKENS,
        )


def test_sampling_depends_on_seed_and_place_alone(random_generator):
    prompts = mixed_prompts()
    sampling = Sampling(max_new_tokens=12, temperature=1.0, top_p=0.9)
    first = random_generator.generate(prompts, sampling)
    again = random_generator.generate(prompts[:3], sampling)
    assert [answer.steps for answer in again] == [answer.steps for answer in first[:3]]
    other = random_generator.generate(prompts[:3], dataclasses.replace(sampling, seed=1))
    assert [answer.steps for answer in other] != [answer.steps for answer in again]
    twice = random_generator.generate([prompts[0]] * 2, sampling)
    assert twice[0].steps != twice[1].steps


def test_small_batches_change_nothing(random_generator, tokenizer):
    prompts, sampling = [Prompt("cat"), Prompt("dog"), Prompt("a")], Sampling(max_new_tokens=8)
    params = init_params(random_generator.config, jax.random.key(0))
    small = Generator(random_generator.config, params, tokenizer, TEMPLATE, max_rows=2)
    expected = [answer.steps for answer in random_generator.generate(prompts, sampling)]
    assert [answer.steps for answer in small.generate(prompts, sampling)] == expected


def test_no_prompts_no_answers(random_generator):
    assert random_generator.generate([]) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"max_images": -1},
    ],
)
def test_sampling_out_of_range_is_refused(random_generator, wrong):
    (name,) = wrong
    with pytest.raises(UserError, match=name):
        random_generator.generate([Prompt("?")], Sampling(**wrong))


def test_tokenizer_of_another_model_is_refused(tokenizer):
    config = scripted_config(tokenizer.vocab_size - 1)
    with pytest.raises(UserError, match=r"tokenizer has \d+ ids, but model.llm.vocab_size"):
        Generator(config, scripted_params(config, {}), tokenizer, TEMPLATE)


# From here on, checkpoints.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns a run's folder with one checkpoint, and its parameters."""
    folder = tmp_path_factory.mktemp("run")
    small_tokenizer(folder / "tokenizer")
    params = write_tiny_run(folder, tiny_config(str(folder / "tokenizer")))
    return folder, params


def test_loaded_generator_answers_like_one_made_of_the_parameters(run, tokenizer):
    folder, params = run
    prompts, sampling = mixed_prompts()[:4], Sampling(max_new_tokens=8)
    made = Generator(tiny_config().model, params, tokenizer, TEMPLATE)
    expected = [answer.steps for answer in made.generate(prompts, sampling)]
    for place in ("", "checkpoints", "checkpoints/00000003"):
        loaded = Generator.load(folder / place)
        assert [answer.steps for answer in loaded.generate(prompts, sampling)] == expected


def test_weights_split_over_devices_answer_alike(run):
    folder, _ = run
    prompts, sampling = mixed_prompts()[:4], Sampling(max_new_tokens=8)
    one, two = Generator.load(folder), Generator.load(folder, num_devices=2)
    kernel = two.params["language_model"]["blocks"]["layer_0"]["mlp"]["up"]["kernel"]
    assert len(kernel.sharding.device_set) == 2
    assert not kernel.is_fully_replicated
    for ours, theirs in zip(
        one.generate(prompts, sampling), two.generate(prompts, sampling), strict=True
    ):
        assert ours.steps == theirs.steps


def test_decoder_comes_in_the_dtype_of_activations_the_tower_in_its_own(tmp_path):
    small_tokenizer(tmp_path / "tokenizer")
    write_tiny_run(tmp_path, tiny_config(str(tmp_path / "tokenizer"), dtype="bfloat16"))
    generator = Generator.load(tmp_path)
    dtypes = {
        name: {str(leaf.dtype) for leaf in jax.tree.leaves(part)}
        for name, part in generator.params.items()
    }
    assert dtypes.pop("vision_tower") == {"float32"}
    assert set().union(*dtypes.values()) == {"bfloat16"}
    (answer,) = generator.generate([Prompt("Hi")], Sampling(max_new_tokens=4))
    assert answer.steps


def test_steps_are_found_by_number(run):
    folder, _ = run
    assert find_checkpoints(folder, 3) == (folder / "checkpoints", 3)
    assert find_checkpoints(folder / "checkpoints" / "00000003", None)[1] == 3
    with pytest.raises(UserError, match="no checkpoint of step 7"):
        Generator.load(folder, 7)
    with pytest.raises(UserError, match="step 3, not 7"):
        Generator.load(folder / "checkpoints" / "00000003", 7)


def test_folder_without_checkpoint_is_refused(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="there is no checkpoint; expected the folder of a run"):
            Generator.load(place)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="there is no checkpoint; expected the folder of a run"):
        Generator.load(tmp_path)


def test_tokenizer_that_is_gone_is_named(tmp_path):
    folder = tmp_path / "tokenizer"
    small_tokenizer(folder)
    write_tiny_run(tmp_path, tiny_config(str(folder)))
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="no such tokenizer folder"):
        Generator.load(tmp_path)


@pytest.mark.parametrize("geometry", ["anyres", "anyres_max_1"])
def test_views_are_read_as_in_training(tmp_path, geometry):
    """The first step of an answer is what the training forward pass makes likeliest."""
    small_tokenizer(tmp_path / "tokenizer")
    config = tiny_config(str(tmp_path / "tokenizer"), image_newline=True)
    (stage,) = config.stages
    data = dataclasses.replace(stage.data, image_geometry=geometry)
    config = dataclasses.replace(config, stages=(dataclasses.replace(stage, data=data),))
    assert config.problems() == data.problems() == []
    params = write_tiny_run(tmp_path, config)
    generator, size = Generator.load(tmp_path), config.model.vision.image_size
    random = np.random.default_rng(0)
    shapes = [(20, 60), (90, 31), (40, 40), (33, 100)]
    prompts = [
        Prompt("What?", (random.integers(0, 256, (*shape, 3), dtype=np.uint8),)) for shape in shapes
    ]
    prompts.append(Prompt("<image> or <image>?", prompts[0].images + prompts[1].images))
    firsts = [answer.steps[0] for answer in generator.generate(prompts, Sampling(max_new_tokens=2))]
    read = [generator._read(prompt, 0, Sampling()) for prompt in prompts]
    batch = build_rows(
        [([prompt.example], prompt.images) for prompt in read],
        pixel_slots(size),
        max_seq_len=256,
        max_images=10,
        num_visual_tokens=4,
        has_mixtures=geometry == "anyres_max_1",
    )
    assert (batch["visual_index"] == -2).any(axis=1).all()
    model = MetaMorph(config.model)
    hidden = model.apply({"params": params}, batch).hidden
    ends = np.array([len(prompt.example) - 1 for prompt in read])
    last = hidden[np.arange(len(read)), ends]
    logits = np.array(model.apply({"params": params}, last, method="logits"))
    special = generator.tokenizer.special
    allowed = generator._allowed.copy()
    allowed[special.image_start], allowed[special.image_end] = True, False
    logits[:, ~allowed] = -np.inf
    assert logits.argmax(axis=1).tolist() == firsts


def test_a_model_without_vision_head_answers_with_text_only(tokenizer):
    special = tokenizer.special
    script = {"\n": [special.image_start, " cat"], " cat": [special.image_end, "."]}
    script |= {".": [special.end_of_turn]}
    generator = scripted_generator(tokenizer, script)
    config = dataclasses.replace(generator.config, vision_head="none")
    script_params = {k: v for k, v in generator.params.items() if k != "vision_head"}
    headless = copy.copy(generator)
    headless.config, headless.params = config, script_params
    image = np.zeros((32, 32, 3), np.uint8)
    for prompt in (Prompt("What is it?"), Prompt("What is it?", (image,))):
        (answer,) = headless.generate([prompt])
        assert (answer.text, answer.finish) == (" cat.", "end_of_turn")
        assert len(answer.visual_tokens) == 0 and not answer.well_formed
