"""Golden cases A, A with llama3 rotary scaling, and B: one training step, value by value."""

import functools

import jax
import numpy as np
import optax
import pytest

from metamorph_jax.models.metamorph import MetaMorph
from tests import golden_model, tolerances
from tests.golden_data import load_case
from tests.model_helpers import relative_error

pytestmark = pytest.mark.golden
CASES = ["A_stage2", "A_stage2_llama3_rope", "B_stage1"]


@functools.cache
def load(case):
    """Returns (JSON, tensors, run, (total, parts, gradients)) of a case."""
    fields, tensors = load_case(case)
    config = fields["config"]
    packed = golden_model.Packed(golden_model.with_prefix(tensors, "inputs/"), config)
    weight = config["vision_coef"] if config["use_visual_loss"] else 0.0
    weights = golden_model.with_prefix(tensors, "weights/")
    our_config = golden_model.model_config(config)
    run = golden_model.GoldenRun(our_config, weights, packed, "cosine", weight)
    return fields, tensors, run, run.evaluate()


def close(ours, theirs, tolerance=tolerances.GOLDEN):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_packing(case):
    _, tensors, run, _ = load(case)
    packed = run.packed
    np.testing.assert_array_equal(packed.expanded_labels, tensors["outputs/expanded_labels"])
    np.testing.assert_array_equal(packed.expanded_mask, tensors["outputs/expanded_attention_mask"])
    np.testing.assert_array_equal(packed.supervised, tensors["outputs/supervised_visual_mask"])
    np.testing.assert_array_equal(packed.table, tensors["outputs/visual_token_table"])


@pytest.mark.parametrize("case", CASES)
def test_features_and_inputs(case):
    _, tensors, run, (_, parts, _) = load(case)
    per_sample, real = tensors["inputs/images_per_sample"], run.packed.expanded_mask[:, :, None]
    features = run.packed.flat_images(run.features, per_sample)
    close(features, tensors["outputs/image_features"])
    projected = run.packed.flat_images(parts["projected"], per_sample)
    close(projected, tensors["outputs/projected_image_features"])
    close(parts["embeddings"] * real, tensors["outputs/inputs_embeds"])


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_predictions(case):
    _, tensors, run, (_, from_pixels, _) = load(case)
    per_sample = tensors["inputs/images_per_sample"]
    features = run.packed.rows_of_images(tensors["outputs/image_features"], per_sample)
    _, parts, _ = run.evaluate(features)
    real = run.packed.expanded_mask[:, :, None]
    close(parts["hidden"] * real, tensors["outputs/final_hidden"])
    hidden = from_pixels["hidden"] * real
    close(hidden, tensors["outputs/final_hidden"], tolerances.GOLDEN_HIDDEN_FROM_PIXELS)
    predicts = run.packed.batch["visual_target"] >= 0
    close(from_pixels["raw"][predicts], tensors["outputs/visual_prediction_raw"])
    close(from_pixels["prediction"][predicts], tensors["outputs/visual_prediction"])


def test_call_does_all_steps():
    _, tensors, run, _ = load("A_stage2")
    output = jax.jit(MetaMorph(run.config).apply)({"params": run.params}, run.packed.batch)
    hidden = output.hidden * run.packed.expanded_mask[:, :, None]
    close(hidden, tensors["outputs/final_hidden"], tolerances.GOLDEN_HIDDEN_FROM_PIXELS)
    per_sample = tensors["inputs/images_per_sample"]
    close(run.packed.flat_images(output.features, per_sample), tensors["outputs/image_features"])


@pytest.mark.parametrize("case", CASES)
def test_losses(case):
    fields, tensors, _, (total, parts, _) = load(case)
    results = fields["results"]
    close(parts["text_per_token"][:, :-1], tensors["outputs/text_loss_per_token"])
    close(parts["text"], results["ce_mean"])
    close(parts["visual"], results["visual_loss"])
    close(parts["visual"], tensors["outputs/visual_loss_per_token"].mean())
    close(parts["cosine"], -results["visual_loss"])
    close(total, results["total_loss"])
    assert parts["text_count"] == results["n_text_targets"]
    assert parts["visual_count"] == results["n_visual_targets"]


@pytest.mark.parametrize("case", CASES)
def test_gradients(case):
    fields, tensors, run, (_, _, grads) = load(case)
    ours = run.by_hf_name(grads)
    assert len(fields["results"]["trainable"]) == (5 if case == "B_stage1" else 38)
    errors = {
        name: relative_error(ours[name], tensors[f"grads/{name}"])
        for name in fields["results"]["trainable"]
    }
    assert max(errors.values()) <= tolerances.GOLDEN_GRADIENT, errors


@pytest.mark.parametrize("case", CASES)
def test_parameters_after_one_step(case):
    fields, tensors, run, (_, _, grads) = load(case)
    adam = fields["optimizer"]
    optimizer = optax.adamw(
        adam["lr"], adam["beta1"], adam["beta2"], adam["eps"], weight_decay=adam["weight_decay"]
    )
    updates, _ = optimizer.update(grads, optimizer.init(run.trained), run.trained)
    ours = run.by_hf_name(optax.apply_updates(run.trained, updates))
    for name in fields["results"]["trainable"]:
        new, old = tensors[f"updated/{name}"], tensors[f"weights/{name}"]
        gradient = np.abs(tensors[f"grads/{name}"])
        large = gradient > tolerances.GOLDEN_UPDATE_MIN_GRADIENT
        assert large.any()
        close(ours[name][large], new[large], tolerances.GOLDEN_UPDATE)
        np.testing.assert_array_equal(ours[name][gradient == 0], old[gradient == 0])
        # The first Adam step moves nothing further than the learning rate, whatever the sign.
        close(ours[name], new, 2.1 * adam["lr"])


def test_batch_without_answer_image():
    fields, tensors = load_case("A_stage2")
    config, expected = fields["config"], fields["no_answer_image_batch"]
    inputs = golden_model.with_prefix(tensors, "inputs/")
    packed = golden_model.Packed(inputs, config, expected["samples"])
    weights = golden_model.with_prefix(tensors, "weights/")
    our_config = golden_model.model_config(config)
    run = golden_model.GoldenRun(our_config, weights, packed, "cosine", config["vision_coef"])
    total, parts, grads = run.evaluate()
    assert parts["visual"] == 0.0
    assert parts["visual_count"] == 0
    close(parts["text"], expected["ce_mean"])
    assert total == parts["text"]
    assert all(np.isfinite(gradient).all() for gradient in jax.tree.leaves(grads))
    ours = run.by_hf_name(grads)
    for name, norm in expected["grad_norm"].items():
        size = np.linalg.norm(ours[name])
        np.testing.assert_allclose(size, norm, rtol=tolerances.GOLDEN_GRADIENT)
    for gradient in jax.tree.leaves(grads["vision_head"]):
        assert not gradient.any()
