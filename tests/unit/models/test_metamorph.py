import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metamorph_jax.config.schema_model import VisualTokensConfig
from metamorph_jax.models.metamorph import MetaMorph
from tests import tolerances
from tests.model_helpers import quick_jit, random_params
from tests.tiny import tiny_batch, tiny_model

CONFIG = tiny_model()


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


def call(params, method, *args, config=CONFIG):
    run = quick_jit(lambda p, *a: MetaMorph(config).apply({"params": p}, *a, method=method))
    return run(params, *args)


def test_call(params):
    batch = tiny_batch(0, num_rows=2)
    output = call(params, "__call__", batch)
    assert output.hidden.shape == (2, 24, 16)
    assert output.features.shape == (2, 2, 4, 8)
    assert output.features.dtype == jnp.float32
    norms = np.linalg.norm(output.features, axis=-1)
    np.testing.assert_allclose(norms, 1.0, rtol=0, atol=tolerances.FLOAT32_REORDERED)


def test_visual_tokens_sit_where_the_index_says(params):
    batch = tiny_batch(0, num_rows=2)
    visual = np.random.default_rng(0).normal(size=(2, 2, 4, 16)).astype(np.float32)
    out = np.asarray(call(params, "embed", batch["tokens"], batch["visual_index"], visual))
    flat = visual.reshape(2, 8, 16)
    table = params["language_model"]["embed_tokens"]["embedding"]
    for row in range(2):
        for position, index in enumerate(batch["visual_index"][row]):
            expected = flat[row, index] if index >= 0 else table[batch["tokens"][row, position]]
            np.testing.assert_array_equal(out[row, position], expected)


def test_an_image_reaches_only_its_own_segment(params):
    batch = tiny_batch(0, num_rows=1)
    before = np.asarray(call(params, "__call__", batch).hidden)
    batch["images"][:, 0] = 255 - batch["images"][:, 0]
    after = np.asarray(call(params, "__call__", batch).hidden)
    np.testing.assert_array_equal(after[:, :2], before[:, :2])
    assert (np.abs(after[:, 2:10] - before[:, 2:10]).max(axis=-1) > 0).all()
    np.testing.assert_array_equal(after[:, 10:21], before[:, 10:21])


def test_row_without_image_slots(params):
    batch = tiny_batch(0, num_rows=2)
    batch["images"] = batch["images"][:, :0]
    batch["visual_index"][:] = -1
    assert np.isfinite(call(params, "__call__", batch).hidden[:, :21]).all()


def test_uint8_equals_normalised_pixels(params):
    images = tiny_batch(0, num_rows=1)["images"]
    floating = (images / 255 - 0.5) / 0.5
    np.testing.assert_allclose(
        call(params, "encode", images),
        call(params, "encode", floating.astype(np.float32)),
        rtol=0,
        atol=tolerances.FLOAT32_REORDERED,
    )


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("temperature", [None, 0.5])
def test_predictions_live_in_the_space_of_features(params, normalize, temperature):
    tokens = VisualTokensConfig(num_tokens=4, normalize=normalize, softmax_temperature=temperature)
    config = dataclasses.replace(CONFIG, visual_tokens=tokens)
    hidden = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    raw = np.asarray(call(params, "predict_visual_raw", hidden, config=config))
    expected = raw / np.linalg.norm(raw, axis=-1, keepdims=True) if normalize else raw
    if temperature:
        expected = np.exp(expected / temperature)
        expected /= expected.sum(axis=-1, keepdims=True)
    prediction = call(params, "predict_visual", hidden, config=config)
    np.testing.assert_allclose(prediction, expected, rtol=0, atol=tolerances.FLOAT32_REORDERED)


def test_head_table_of_tied_and_untied_models(params):
    table = MetaMorph.head_table(params)
    assert table is params["language_model"]["lm_head"]["kernel"]
    tied = tiny_model(llm=dataclasses.replace(CONFIG.llm, tie_embeddings=True))
    tied_params = random_params(tied)
    np.testing.assert_array_equal(
        MetaMorph.head_table(tied_params),
        tied_params["language_model"]["embed_tokens"]["embedding"].T,
    )


def test_concatenated_tokens_are_four_times_wider():
    tokens = VisualTokensConfig(reduction="concat_interpolation", num_tokens=4)
    config = tiny_model(visual_tokens=tokens)
    output = call(random_params(config), "__call__", tiny_batch(0, num_rows=1), config=config)
    assert output.features.shape == (1, 2, 4, 32)


def test_bfloat16_compute_keeps_features_and_predictions_in_float32(params):
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    batch = tiny_batch(0, num_rows=1)
    output = call(params, "__call__", batch, config=config)
    assert output.features.dtype == jnp.float32
    assert output.hidden.dtype == jnp.bfloat16
    assert call(params, "predict_visual", output.hidden, config=config).dtype == jnp.float32
    exact = call(params, "__call__", batch)
    np.testing.assert_allclose(output.features, exact.features, rtol=0, atol=tolerances.BFLOAT16)
    assert jax.tree.all(jax.tree.map(lambda leaf: leaf.dtype == np.float32, params))


NEWLINE_CONFIG = tiny_model(image_newline=True)


def test_newlines_and_mixtures_sit_where_the_index_says():
    params = random_params(NEWLINE_CONFIG)
    batch = tiny_batch(0, num_rows=2)
    batch["visual_index"][:, [4, 15]] = -2
    random = np.random.default_rng(0)
    visual = random.normal(size=(2, 2, 4, 16)).astype(np.float32)
    sources = random.integers(0, 8, (2, 24, 4))
    weights = random.random((2, 24, 4)).astype(np.float32)
    arguments = (batch["tokens"], batch["visual_index"], visual, (sources, weights))
    out = np.asarray(call(params, "embed", *arguments, config=NEWLINE_CONFIG))
    flat = visual.reshape(2, 8, 16)
    table = params["language_model"]["embed_tokens"]["embedding"]
    for row in range(2):
        for position, index in enumerate(batch["visual_index"][row]):
            expected = table[batch["tokens"][row, position]]
            if index == -2:
                expected = params["image_newline"]["embedding"]
            elif index >= 0:
                expected = weights[row, position] @ flat[row, sources[row, position]]
            np.testing.assert_allclose(
                out[row, position], expected, rtol=0, atol=tolerances.FLOAT32_REORDERED
            )


def test_the_newline_is_a_vector_of_its_own():
    assert set(random_params(NEWLINE_CONFIG)) - set(random_params(CONFIG)) == {"image_newline"}
    batch = tiny_batch(0, num_rows=1)
    batch["visual_index"][:, 4] = -2

    def total(params):
        hidden = MetaMorph(NEWLINE_CONFIG).apply({"params": params}, batch).hidden
        return jnp.sum(hidden[:, 5] ** 2)

    grads = quick_jit(jax.grad(total))(random_params(NEWLINE_CONFIG))
    assert np.abs(grads["image_newline"]["embedding"]).max() > 0
