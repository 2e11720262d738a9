import numpy as np
import pytest

from metamorph_jax.errors import UserError
from metamorph_jax.hub.vocabulary import apply_adapter, extend_rows, extend_vocab

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def tensors():
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=(6, 4)).astype(np.float32) for name in (EMBED, HEAD, "mm_projector.w")
    }


def test_mean_of_half_precision_is_taken_in_float32():
    table = np.full((3000, 2), 1.0, np.float16)  # a float16 sum of ones stops at 2048
    np.testing.assert_array_equal(extend_rows(table, 1)[-1], [1, 1])
    assert extend_rows(table, 1).dtype == np.float16


def test_both_tables_grow_and_nothing_else():
    before = tensors()
    after = extend_vocab(before, 8)
    for name in (EMBED, HEAD):
        np.testing.assert_array_equal(after[name][:6], before[name])
        np.testing.assert_array_equal(after[name][6], after[name][7])
    assert after["mm_projector.w"] is before["mm_projector.w"]


def test_right_size_stays_and_a_tied_model_has_one_table():
    before = tensors()
    del before[HEAD]
    after = extend_vocab(before, 6)
    np.testing.assert_array_equal(after[EMBED], before[EMBED])
    assert HEAD not in after


def test_a_table_does_not_shrink():
    with pytest.raises(UserError, match=r"6 rows, more than vocab_size=5"):
        extend_vocab(tensors(), 5)


def test_adapter_with_names_of_either_kind():
    before = tensors()
    for prefix in ("", "model."):
        adapter = {
            f"{prefix}mm_projector.w": np.ones((2, 2)),
            f"{prefix}embed_tokens.weight": np.ones((6, 4), np.float32),
        }
        after = apply_adapter(before, adapter)
        np.testing.assert_array_equal(after["mm_projector.w"], np.ones((2, 2)))
        np.testing.assert_array_equal(after[EMBED][-2:], np.ones((2, 4)))
        np.testing.assert_array_equal(after[EMBED][:-2], before[EMBED][:-2])
        np.testing.assert_array_equal(after[HEAD], before[HEAD])


def test_adapter_replaces_the_projector_however_the_model_spells_it():
    before = tensors()
    before["model.mm_projector.w"] = before.pop("mm_projector.w")
    after = apply_adapter(before, {"mm_projector.w": np.ones((2, 2))})
    assert set(after) == set(before)
    np.testing.assert_array_equal(after["model.mm_projector.w"], np.ones((2, 2)))


def test_adapter_with_something_else():
    with pytest.raises(UserError, match="vision_head"):
        apply_adapter(tensors(), {"vision_head.0.weight": np.ones(1)})
