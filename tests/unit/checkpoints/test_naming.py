import flax.struct
import jax
import jax.numpy as jnp
import pytest

from metamorph_jax.checkpoints.naming import (
    array_specs,
    check_same_arrays,
    tree_fingerprint,
    unnest,
)
from metamorph_jax.errors import UserError
from metamorph_jax.trees import flatten, unflatten
from tests.unit.checkpoints.examples import make_params, make_state


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict


def test_names_follow_keys_fields_and_positions():
    state = make_state(1)
    names = flatten(state)
    pairs = zip(names.values(), jax.tree.leaves(state), strict=True)
    assert all(named is leaf for named, leaf in pairs)
    assert "params/connector/layers_0/kernel" in names
    assert "opt_state/1/inner_state/0/mu/connector/layers_0/bias" in names


def test_dataclass_and_dict_have_the_same_names():
    params = make_params(1)
    step = jnp.zeros(())
    assert set(flatten(State(step, params))) == set(flatten({"step": step, "params": params}))


def test_nest_and_unnest_are_inverse_also_for_awkward_keys():
    tree = {"a/b": {"c.d": [jnp.zeros(2)]}, "a": {"b%2F": (jnp.ones(1), {"x": jnp.ones(3)})}}
    named = flatten(tree)
    assert len(named) == 3
    assert all(name.count(".") == 0 for name in named)
    assert unnest(unflatten(named)) == named


class Twins:
    """A tree node with two children whose keys read the same."""


jax.tree_util.register_pytree_with_keys(
    Twins,
    lambda _: (((jax.tree_util.DictKey(1), 1.0), (jax.tree_util.DictKey("1"), 2.0)), None),
    lambda _, children: Twins(),
)


def test_equal_names_are_refused():
    with pytest.raises(ValueError, match="two leaves of the tree are called '1'"):
        flatten(Twins())


@pytest.mark.parametrize("leaf", [3, 2.5, "text"])
def test_only_arrays_can_be_stored(leaf):
    with pytest.raises(TypeError, match="opt_state/count"):
        array_specs({"opt_state/count": leaf})


def test_typed_keys_are_refused_with_the_way_out():
    with pytest.raises(TypeError, match="key_data"):
        array_specs({"key": jax.random.key(0)})


def test_fingerprint_depends_on_names_and_shapes_only():
    one = tree_fingerprint(make_params(1))
    assert one == tree_fingerprint(make_params(2))
    assert one == tree_fingerprint(jax.eval_shape(lambda: make_params(1)))
    renamed = make_params(1)
    renamed["projector"] = renamed.pop("connector")
    assert one != tree_fingerprint(renamed)
    wider = make_params(1)
    wider["connector"]["layers_0"]["bias"] = jnp.zeros(17)
    assert one != tree_fingerprint(wider)


def _compare(wanted, stored, **options):
    check_same_arrays(
        array_specs(flatten(wanted)), array_specs(flatten(stored)), "RUN/0007", **options
    )


def test_equal_trees_pass():
    _compare(make_state(1), make_state(2))


def test_every_kind_of_difference_is_listed_with_the_nearest_name():
    wanted, stored = ({"params": make_params(1)} for _ in range(2))
    wanted["params"]["connectors"] = wanted["params"].pop("connector")
    stored["params"]["language_model"]["embed_tokens"]["embedding"] = jnp.zeros((64, 16))
    with pytest.raises(UserError) as caught:
        _compare(wanted, stored)
    message = str(caught.value)
    assert "RUN/0007" in message
    assert "2 wanted by this run, absent from the checkpoint" in message
    assert "params/connectors/layers_0/bias  (nearest: params/connector/layers_0/bias)" in message
    assert "2 in the checkpoint, unknown to this run" in message
    assert "float32[64,16] stored, float32[32,16] wanted" in message
    assert "--workdir" in message


def test_only_ten_of_each_are_listed_and_parameters_come_first():
    wanted = {"opt_state": {f"a{i:02}": jnp.zeros(1) for i in range(15)}}
    wanted["params"] = {f"w{i}": jnp.zeros(1) for i in range(4)}
    with pytest.raises(UserError) as caught:
        _compare(wanted, {})
    lines = str(caught.value).splitlines()
    assert lines[1].strip().startswith("19 wanted by this run")
    assert [line.strip() for line in lines[2:6]] == [f"params/w{i}" for i in range(4)]
    assert lines[11].strip() == "opt_state/a05"
    assert "... and 9 more" in lines[12]


@pytest.mark.parametrize(
    ("dtype", "cast_floats", "is_fine"),
    [("bfloat16", True, True), ("bfloat16", False, False), ("int32", True, False)],
)
def test_other_dtypes_are_allowed_for_floats_on_request(dtype, cast_floats, is_fine):
    wanted, stored = {"w": jnp.zeros(3, dtype)}, {"w": jnp.zeros(3, jnp.float32)}
    if is_fine:
        _compare(wanted, stored, cast_floats=cast_floats)
    else:
        with pytest.raises(UserError, match="float32"):
            _compare(wanted, stored, cast_floats=cast_floats)
