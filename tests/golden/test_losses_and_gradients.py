"""Golden cases A, A with llama3 rotary scaling, and B: one training step, value by value."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metamorph_jax.models.metamorph import MetaMorph
from tests import golden_model, tolerances

pytestmark = pytest.mark.golden
CASES = ["A_stage2", "A_stage2_llama3_rope", "B_stage1"]
load_run = functools.cache(golden_model.load_run)


def close(ours, theirs, tolerance=tolerances.GOLDEN):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=tolerance)


def relative_error(ours, theirs):
    size = np.linalg.norm(theirs)
    error = np.linalg.norm(np.asarray(ours) - theirs)
    return error / size if size > 0 else error


@pytest.mark.parametrize("case", CASES)
def test_packing(case):
    _, tensors, run = load_run(case)
    packed = run.packed
    np.testing.assert_array_equal(packed.expanded_labels, tensors["outputs/expanded_labels"])
    np.testing.assert_array_equal(packed.expanded_mask, tensors["outputs/expanded_attention_mask"])
    np.testing.assert_array_equal(packed.supervised, tensors["outputs/supervised_visual_mask"])
    np.testing.assert_array_equal(packed.table, tensors["outputs/visual_token_table"])


@pytest.mark.parametrize("case", CASES)
def test_features_and_inputs(case):
    _, tensors, run = load_run(case)
    per_sample, batch = tensors["inputs/images_per_sample"], run.packed.batch
    features = run.packed.flat_images(run.parts["features"], per_sample)
    close(features, tensors["outputs/image_features"])
    model = MetaMorph(run.config)
    visual = model.apply({"params": run.params}, run.parts["features"], method="connect")
    projected = run.packed.flat_images(np.asarray(visual), per_sample)
    close(projected, tensors["outputs/projected_image_features"])
    embeddings = model.apply(
        {"params": run.params}, batch["tokens"], batch["visual_index"], visual, method="embed"
    )
    real = run.packed.expanded_mask[:, :, None]
    close(embeddings * real, tensors["outputs/inputs_embeds"])


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_predictions(case):
    _, tensors, run = load_run(case)
    real = run.packed.expanded_mask[:, :, None]
    close(run.parts["hidden"] * real, tensors["outputs/final_hidden"])
    predicts = run.packed.batch["visual_target"] >= 0
    close(run.parts["raw"][predicts], tensors["outputs/visual_prediction_raw"])
    close(run.parts["prediction"][predicts], tensors["outputs/visual_prediction"])


@pytest.mark.parametrize("case", CASES)
def test_losses(case):
    fields, tensors, run = load_run(case)
    results, parts = fields["results"], run.parts
    per_token = np.where(run.packed.batch["loss_mask"], parts["per_token"], 0.0)
    close(per_token[:, :-1], tensors["outputs/text_loss_per_token"])
    close(parts["text"], results["ce_mean"])
    close(parts["visual"], results["visual_loss"])
    close(parts["cosine"], -results["visual_loss"])
    close(run.total, results["total_loss"])
    assert parts["text_count"] == results["n_text_targets"]
    assert parts["visual_count"] == results["n_visual_targets"]


@pytest.mark.parametrize("case", CASES)
def test_gradients(case):
    fields, tensors, run = load_run(case)
    ours = run.by_hf_name(run.grads)
    assert len(fields["results"]["trainable"]) == (5 if case == "B_stage1" else 38)
    errors = {
        name: relative_error(ours[name], tensors[f"grads/{name}"])
        for name in fields["results"]["trainable"]
    }
    assert max(errors.values()) <= tolerances.GOLDEN_GRADIENT, errors


@pytest.mark.parametrize("case", CASES)
def test_parameters_after_one_step(case):
    fields, tensors, run = load_run(case)
    adam = fields["optimizer"]
    optimizer = optax.adamw(
        adam["lr"], adam["beta1"], adam["beta2"], adam["eps"], weight_decay=adam["weight_decay"]
    )
    updates, _ = optimizer.update(run.grads, optimizer.init(run.trained), run.trained)
    ours = run.by_hf_name(optax.apply_updates(run.trained, updates))
    for name in fields["results"]["trainable"]:
        new, old = tensors[f"updated/{name}"], tensors[f"weights/{name}"]
        gradient = np.abs(tensors[f"grads/{name}"])
        large = gradient > tolerances.GOLDEN_UPDATE_MIN_GRADIENT
        assert large.any()
        close(ours[name][large], new[large], tolerances.GOLDEN_UPDATE)
        np.testing.assert_array_equal(ours[name][gradient == 0], old[gradient == 0])
        # One Adam step moves nothing further than the learning rate, whatever the sign.
        close(ours[name], new, 2.1 * adam["lr"])


def test_batch_without_answer_image():
    fields, tensors = golden_model.load_case("A_stage2")
    config = fields["config"]
    expected = fields["results"].get("no_answer_image_batch") or fields["no_answer_image_batch"]
    packed = golden_model.Packed(
        golden_model.with_prefix(tensors, "inputs/"), config, expected["samples"]
    )
    run = golden_model.GoldenRun(
        golden_model.model_config(config),
        golden_model.with_prefix(tensors, "weights/"),
        packed,
        "cosine",
        config["vision_coef"],
    )
    assert run.parts["visual"] == 0.0
    close(run.parts["text"], expected["ce_mean"])
    close(run.total, run.parts["text"], 0.0)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(run.grads))
    grads = run.by_hf_name(run.grads)
    for name, norm in expected["grad_norm"].items():
        ours = np.linalg.norm(grads[name])
        np.testing.assert_allclose(
            ours, norm, rtol=tolerances.GOLDEN_GRADIENT, atol=tolerances.GOLDEN
        )
    for gradient in jax.tree.leaves(run.grads["vision_head"]):
        np.testing.assert_array_equal(gradient, jnp.zeros_like(gradient))
