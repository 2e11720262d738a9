"""Strict reading of recipes."""

import dataclasses
from typing import Literal

import pytest

from metamorph_jax.config.build import build_dataclass
from metamorph_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    kind: Literal["steam", "diesel"] = "steam"
    power: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    name: str
    num_cars: int
    engine: Engine = Engine()
    stops: tuple[str, ...] = ()
    cargo: dict[str, float] = dataclasses.field(default_factory=dict)
    limit: int | None = None

    def problems(self):
        return ["num_cars must be positive"] if self.num_cars < 1 else []


def test_reads_nested_values_and_fills_defaults():
    values = {"name": "a", "num_cars": 2, "engine": {"power": 3}, "stops": ["x", "y"]}
    built = build_dataclass(Train, values | {"cargo": {"coal": 1}, "limit": 9})
    assert built == Train(
        name="a",
        num_cars=2,
        engine=Engine(power=3.0),
        stops=("x", "y"),
        cargo={"coal": 1.0},
        limit=9,
    )
    assert isinstance(built.engine.power, float)


def test_reports_all_problems_at_once_with_paths_and_nearest_names():
    values = {"nmae": "a", "num_cars": "2", "engine": {"kind": "deisel", "power": True}}
    with pytest.raises(UserError) as caught:
        build_dataclass(Train, values, path="config.train")
    message = str(caught.value)
    assert "5 problems" in message
    assert "config.train.nmae: no such key; did you mean name or num_cars?" in message
    assert "keys here: cargo, engine, limit, name, num_cars, stops" in message
    assert "config.train.name: missing; expected str" in message
    assert "config.train.num_cars: got '2' (str), expected int" in message
    assert "config.train.engine.kind: got 'deisel' (str), expected one of" in message
    assert "did you mean 'diesel'?" in message
    assert "config.train.engine.power: got True (bool), expected float" in message


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"num_cars": 1.5}, "config.num_cars"),
        ({"num_cars": None}, "config.num_cars"),
        ({"engine": 3}, "config.engine"),
        ({"stops": "x"}, "config.stops"),
        ({"stops": [1]}, "config.stops.0"),
        ({"cargo": {"coal": "much"}}, "config.cargo.coal"),
        ({"limit": "many"}, "config.limit"),
    ],
)
def test_wrong_types_are_named_by_path(values, path):
    with pytest.raises(UserError, match=rf"- {path}: got"):
        build_dataclass(Train, {"name": "a", "num_cars": 1} | values)


def test_checks_what_must_fit_together():
    with pytest.raises(UserError, match="config: num_cars must be positive"):
        build_dataclass(Train, {"name": "a", "num_cars": 0})
