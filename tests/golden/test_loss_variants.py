"""Golden case C: cosine, half weight, L1, and the two softmax losses, with their gradients.

The softmax variants divide by a temperature of 0.07 before an exponential, which magnifies the
rounding of the tower (2e-6, in torch as in jax) to some 1e-5 in what follows: there the reference
is further than 1e-5 from its own float64 result. Therefore the features of our tower are compared
first, and what follows is computed from the reference's features; the mean losses are compared
both ways.
"""

import functools

import numpy as np
import pytest

from metamorph_jax.objectives.visual import visual_loss_per_token
from tests import golden_model, tolerances
from tests.golden_data import load_case
from tests.model_helpers import relative_error

pytestmark = pytest.mark.golden
KINDS = {
    "cosine": "cosine",
    "cosine_half": "cosine",
    "l1": "l1",
    "softmax": "softmax",
    "softmax_unnormalised": "softmax",
}


@functools.cache
def load(variant: str):
    """Returns (results, tensors of the variant, images per sample, run, evaluation)."""
    fields, tensors = load_case("C_loss_variants")
    settings = fields["variants"][variant]
    switches = {name: settings[name] for name in ("normalize_vision", "apply_softmax")}
    switches["image_token_reduction"] = fields["config"]["image_token_reduction"]
    config = fields["config"] | switches
    packed = golden_model.Packed(golden_model.with_prefix(tensors, "inputs/"), config)
    weights = golden_model.with_prefix(tensors, "weights/")
    run = golden_model.GoldenRun(
        golden_model.model_config(config), weights, packed, KINDS[variant], settings["vision_coef"]
    )
    images_per_sample = tensors["inputs/images_per_sample"]
    own = golden_model.with_prefix(tensors, f"{variant}/")
    features = packed.rows_of_images(own["outputs/image_features"], images_per_sample)
    return settings["results"], own, images_per_sample, run, run.evaluate(features)


def close(ours, theirs):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=tolerances.GOLDEN)


@pytest.mark.parametrize("variant", KINDS)
def test_features(variant):
    _, tensors, images_per_sample, run, _ = load(variant)
    features = run.packed.flat_images(run.features, images_per_sample)
    close(features, tensors["outputs/image_features"])


@pytest.mark.parametrize("variant", KINDS)
def test_values(variant):
    results, tensors, _, run, (total, parts, _) = load(variant)
    packed = run.packed
    close(parts["hidden"] * packed.expanded_mask[:, :, None], tensors["outputs/final_hidden"])
    predicts = packed.batch["visual_target"] >= 0
    close(parts["raw"][predicts], tensors["outputs/visual_prediction_raw"])
    close(parts["prediction"][predicts], tensors["outputs/visual_prediction"])
    close(parts["text_per_token"][:, :-1], tensors["outputs/text_loss_per_token"])
    per_visual_token = visual_loss_per_token(
        tensors["outputs/visual_prediction"], tensors["outputs/visual_target"], KINDS[variant]
    )
    close(per_visual_token, tensors["outputs/visual_loss_per_token"])
    close(parts["text"], results["ce_mean"])
    close(parts["visual"], results["visual_loss"])
    close(total, results["total_loss"])


@pytest.mark.parametrize("variant", KINDS)
def test_mean_losses_from_pixels(variant):
    results, _, _, run, _ = load(variant)
    total, parts, _ = run.evaluate()
    close(parts["text"], results["ce_mean"])
    close(parts["visual"], results["visual_loss"])
    close(total, results["total_loss"])


@pytest.mark.parametrize("variant", KINDS)
def test_gradients(variant):
    results, tensors, _, run, (_, _, grads) = load(variant)
    ours = run.by_hf_name(grads)
    stored = golden_model.with_prefix(tensors, "grads/")
    assert len(stored) >= 18
    errors = {name: relative_error(ours[name], t) for name, t in stored.items()}
    assert max(errors.values()) <= tolerances.GOLDEN_GRADIENT, errors
    for name in results["trainable"]:
        norm = np.linalg.norm(ours[name])
        np.testing.assert_allclose(
            norm, results["grad_norm"][name], rtol=tolerances.GOLDEN_GRADIENT
        )
