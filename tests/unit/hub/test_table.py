import numpy as np
import pytest

from metamorph_jax.errors import UserError
from metamorph_jax.hub.table import Row, Table, read_tensors, write_tensors

TABLE = Table(
    rows=(
        Row("embed/table", "embed.weight", "V D -> V D"),
        Row("blocks/out/kernel", "layers.{layer}.out.weight", "D (N H) -> N H D"),
        Row("norm/scale", "norm.weight", "D -> D"),
    ),
    sizes={"V": 5, "D": 4, "N": 2, "H": 3},
    num_layers=2,
    ignored=(r"extra\..*",),
    padded_vocab_size=8,
)


def tensors():
    rng = np.random.default_rng(0)
    shapes = {"embed.weight": (5, 4), "norm.weight": (4,)}
    shapes |= {f"layers.{i}.out.weight": (4, 6) for i in range(2)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_there():
    given = tensors()
    params = read_tensors(TABLE, given, "test")
    assert params["embed"]["table"].shape == (8, 4)
    assert not params["embed"]["table"][5:].any()
    np.testing.assert_array_equal(params["embed"]["table"][:5], given["embed.weight"])
    assert params["blocks"]["out"]["kernel"].shape == (2, 2, 3, 4)
    kernel = given["layers.1.out.weight"]
    np.testing.assert_array_equal(params["blocks"]["out"]["kernel"][1, 1, 2], kernel[:, 5])


def test_and_back():
    given = tensors()
    back = write_tensors(TABLE, read_tensors(TABLE, given, "test"))
    assert set(back) == set(given)
    for name, value in given.items():
        np.testing.assert_array_equal(back[name], value)
        assert back[name].flags.c_contiguous


def test_all_wrong_names_at_once():
    given = tensors()
    del given["layers.1.out.weight"], given["norm.weight"]
    given["norm.wieght"], given["extra.thing"] = np.ones(4), np.ones(1)
    with pytest.raises(UserError) as error:
        read_tensors(TABLE, given, "test model")
    message = str(error.value)
    assert "test model" in message
    assert "2 missing: layers.1.out.weight, norm.weight" in message
    assert "1 unknown: norm.wieght (nearest to the first: norm.weight)" in message
    assert "extra" not in message


def test_long_lists_are_cut():
    given = tensors() | {f"surplus.{i}": np.ones(1) for i in range(30)}
    with pytest.raises(UserError, match=r"30 unknown: .* and 22 more"):
        read_tensors(TABLE, given, "test")


@pytest.mark.parametrize(
    ("name", "shape"),
    [("norm.weight", (5,)), ("layers.0.out.weight", (4, 8)), ("embed.weight", (6, 4))],
)
def test_wrong_shapes(name, shape):
    given = tensors()
    given[name] = np.ones(shape, np.float32)
    with pytest.raises(UserError) as error:
        read_tensors(TABLE, given, "test")
    assert name in str(error.value)
    assert str(shape) in str(error.value)
