"""Golden case H: rows for the two image tokens, and loading a first-stage adapter."""

import numpy as np
import pytest

from metamorph_jax.hub.vocabulary import apply_adapter, extend_vocab
from tests import tolerances
from tests.golden_data import load_case

pytestmark = pytest.mark.golden
TABLES = ("model.embed_tokens", "lm_head")


def grown():
    fields, tensors = load_case("H_new_token_rows")
    old = {f"{table}.weight": tensors[f"inputs/{table}.weight"] for table in TABLES}
    return fields, tensors, old, extend_vocab(old, fields["new_vocab"])


@pytest.mark.parametrize("table", TABLES)
def test_new_rows_are_the_mean(table):
    fields, tensors, old, new = grown()
    rows = new[f"{table}.weight"]
    assert rows.shape[0] == fields["new_vocab"]
    np.testing.assert_array_equal(rows[: fields["old_vocab"]], old[f"{table}.weight"])
    np.testing.assert_allclose(
        rows[fields["old_vocab"] :],
        tensors[f"outputs/new_rows.{table}"],
        rtol=0,
        atol=tolerances.GOLDEN,
    )


def test_adapter_replaces_the_last_two_input_rows_only():
    fields, tensors, _, new = grown()
    embed = "model.embed_tokens.weight"
    adapter_table = np.zeros_like(new[embed])
    adapter_table[-2:] = tensors["inputs/adapter.last_rows.model.embed_tokens"]
    projector = {"model.mm_projector.0.weight": np.ones((4, 3), np.float32)}
    after = apply_adapter(new, projector | {embed: adapter_table})
    np.testing.assert_array_equal(
        after[embed][-2:], tensors["outputs/after_adapter.last_rows.model.embed_tokens"]
    )
    np.testing.assert_array_equal(after[embed][:-2], new[embed][: fields["old_vocab"]])
    np.testing.assert_allclose(
        after["lm_head.weight"][-2:],
        tensors["outputs/after_adapter.last_rows.lm_head"],
        rtol=0,
        atol=tolerances.GOLDEN,
    )
    np.testing.assert_array_equal(
        after["model.mm_projector.0.weight"], projector["model.mm_projector.0.weight"]
    )
