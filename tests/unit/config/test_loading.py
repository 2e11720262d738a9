"""Recipe files, overrides on the command line, and the texts they are kept as."""

import json
from pathlib import Path

import pytest

from metamorph_jax.config.loading import from_dict, load_recipe, to_dict, to_text
from metamorph_jax.config.overrides import parse_literal, split_arguments
from metamorph_jax.errors import UserError

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
RECIPES = [
    "digits.py",
    "shapes.py",
    "vpit_8b.py",
    "vpit_8b.py:unpacked",
    "vpit_70b.py:v5p",
    "llava15_7b.py",
    "llava15_13b.py:v5e,projector",
]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads_and_survives_a_round_trip(name):
    config = load_recipe(f"{CONFIGS}/{name}")
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_overrides_reach_leaves_and_named_list_items():
    overrides = {
        "model.llm.num_layers": "2",
        "stages.vpit.optimizer.learning_rate": "5e-4",
        "stages.0.total_steps": "7",
        "stages.vpit.optimizer.multipliers.vision_head": "10",
        "name": "mine",
    }
    config = load_recipe(f"{CONFIGS}/digits.py", overrides)
    assert config.model.llm.num_layers == 2
    assert config.stages[-1].optimizer.learning_rate == 5e-4
    assert config.stages[-1].optimizer.multipliers == {"vision_head": 10.0}
    assert config.stages[0].total_steps == 7
    assert config.name == "mine"


def test_all_mistakes_on_the_command_line_are_reported_together():
    overrides = {"stages.vpti.total_steps": "1", "modle.dtype": "x", "model.dtype": "float23"}
    with pytest.raises(UserError) as caught:
        load_recipe(f"{CONFIGS}/digits.py", overrides)
    message = str(caught.value)
    assert "3 problems" in message
    assert "config.stages.vpti: no such item; did you mean vpit?" in message
    assert "config.modle: no such key; did you mean model?" in message
    assert "config.model.dtype: got 'float23'" in message


def test_a_leaf_has_no_keys():
    with pytest.raises(UserError, match=r"config\.name is the value 'digits', not a section"):
        load_recipe(f"{CONFIGS}/digits.py", {"name.first": "x"})


def test_missing_recipe_lists_the_ones_there():
    with pytest.raises(UserError, match=r"is no file; recipes there: .*digits\.py"):
        load_recipe(f"{CONFIGS}/digist.py")


def test_recipe_without_get_config(tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="expected a function get_config"):
        load_recipe(str(tmp_path / "empty.py"))


def test_syntax_error_in_a_recipe_has_its_line(tmp_path):
    (tmp_path / "broken.py").write_text("x = 1\ndef get_config(:\n")
    with pytest.raises(UserError, match=r"broken\.py:2: "):
        load_recipe(str(tmp_path / "broken.py"))


def test_split_arguments_keeps_the_rest():
    overrides, rest = split_arguments(["--config=a.py", "--config.x.y=1", "--resume=never"])
    assert overrides == {"x.y": "1"}
    assert rest == ["--config=a.py", "--resume=never"]
    with pytest.raises(UserError, match=r"--config\.path\.to\.key=value"):
        split_arguments(["--config.x"])


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("1e-3", 1e-3), ("None", None), ("bfloat16", "bfloat16"), ("('a',)", ("a",))],
)
def test_literals(text, value):
    assert parse_literal(text) == value


def test_text_is_sorted_dotted_lines():
    lines = to_text(load_recipe(f"{CONFIGS}/digits.py")).splitlines()
    assert lines == sorted(lines)
    assert "config.stages.vpit.objective = 'vpit'" in lines
    assert all(line.startswith("config.") and " = " in line for line in lines)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["y = 1", "x = undefined_name"], r":2: NameError: name 'undefined_name' is not defined"),
        (["import no_such_module"], r":1: ModuleNotFoundError: No module named 'no_such_module'"),
        (["def get_config():", "    return 1 + 'a'"], r":2: TypeError: unsupported operand"),
        (["import json", "def get_config():", "    json.loads('{')"], r":3: JSONDecodeError: "),
        (
            ["", "def get_config(size):", "    return {}"],
            r":2: TypeError: .*'size'; write --config",
        ),
        (["def get_config():", "    pass"], r": get_config\(\) returned None \(NoneType\)"),
        (["def get_config():", "    return [1]"], r": get_config\(\) returned \[1\] \(list\)"),
    ],
)
def test_what_a_recipe_raises_has_its_line(tmp_path, lines, expected):
    (tmp_path / "broken.py").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"broken\.py" + expected):
        load_recipe(str(tmp_path / "broken.py"), {"name": "overridden"})


def test_mistakes_that_a_recipe_explains_are_passed_on():
    with pytest.raises(UserError) as caught:
        load_recipe(f"{CONFIGS}/vpit_8b.py:neither")
    assert str(caught.value) == (
        "configs/vpit_8b.py:neither: no word 'neither' here; hardware: any, v4, v5e, v5p, v6e, "
        "h100, h200; rows: packed, unpacked"
    )
