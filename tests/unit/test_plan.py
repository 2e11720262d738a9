"""The front door: answers, files, and mistakes before anything is allocated."""

import importlib.util
import json
import subprocess
import sys

import pytest

from metamorph_jax.errors import UserError
from metamorph_jax.plan import main

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="pip install 'metamorph_jax[plan]'"
)
RECIPE = """
from metamorph_jax.config.presets import llm_preset, vision_preset

def get_config(arg=""):
    llm = {"vocab_size": 512, "num_layers": 2, "embed_dim": 128, "mlp_dim": 256, "num_heads": 4}
    llm |= {"num_kv_heads": 2, "head_dim": 32, "scan_unroll": 1, "remat": "full"}
    vision = {"num_layers": 1, "embed_dim": 32, "num_heads": 2, "mlp_dim": 32, "scan_unroll": 1}
    return {
        "name": "small",
        "tokenizer": {"path": "not here"},
        "model": {
            "llm": llm_preset("digits", **llm),
            "vision": vision_preset("digits", **vision),
            "visual_tokens": {"num_tokens": 4},
            "dtype": "bfloat16",
            "init_from": ["not here either"],
        },
        "stages": [stage("adapter", ["connector"]), stage("vpit", ["language_model"])],
    }

def stage(name, trained):
    return {
        "name": name,
        "trained": trained,
        "data": {"sources": [{"path": "nor.jsonl"}], "max_seq_len": 128, "max_images": 2},
        "optimizer": {"learning_rate": 1e-3},
        "total_steps": 100,
        "global_batch_size": 16,
    }
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(RECIPE)
    return f"--config={path}"


def test_gpus_are_planned_without_data_weights_or_compiler(recipe, tmp_path, capsys):
    files = [f"--json={tmp_path / 'plan.json'}", f"--plot={tmp_path / 'plan.png'}"]
    assert main([recipe, "--topology=h200:8", *files]) == 0
    text = capsys.readouterr().out
    assert "by arithmetic only" in text and "compiled" not in text
    assert text.count("fits: ") == 2
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["fits"] is True
    for part in ("bytes_per_chip", "flops", "collectives", "roofline"):
        assert set(plan[part]) == {"adapter", "vpit"}
    memory = plan["bytes_per_chip"]["vpit"]
    held = sum(part["bytes"] for name, part in memory["parts"].items() if name != "needed")
    assert held == pytest.approx(memory["needed"])
    assert {part["source"] for part in memory["parts"].values()} == {"counted"}
    assert plan["roofline"]["vpit"]["steps"] == 100
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_one_stage_can_be_chosen_by_its_name(recipe, capsys):
    assert main([recipe, "--topology=h200:8", "--stage=adapter"]) == 0
    assert "vpit" not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--stage=vipt: .* has the stages: adapter, vpit"):
        main([recipe, "--topology=h200:8", "--stage=vipt"])


def test_a_sweep_ranks_what_fits_and_is_fast_first(recipe, capsys):
    assert main([recipe, "--topology=h200:8", "--stage=vpit", "--sweep"]) == 0
    table = capsys.readouterr().out.partition("best first")[2].splitlines()[2:]
    rows = [row.split() for row in table if row.split()[1:2] in (["yes"], ["no"])]
    times = [float(row[3]) for row in rows if row[1] == "yes"]
    assert len(times) > 3 and times == sorted(times)
    assert [row[0] for row in rows[:12]] == [str(place) for place in range(1, len(rows[:12]) + 1)]
    assert sum("(the recipe as it is)" in row for row in table) == 1
    # Flags name what differs, and nothing else.
    assert all("=16" not in row and "data=1" not in row for row in table)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.mesh.fsdp=3"], r"\(1, 3, 1, 1\) does not fit 8 device\(s\): .* multiply to 3"),
        (["--config.stages.vpit.global_batch_size=12"], r"=12 does not divide by 8 batch shards"),
        (["--config.mesh.fsdp=1", "--config.mesh.tensor=8"], r"tensor=8.*4 = 0 x 8 \+ 4"),
        (["--config.model.llm.max_seq_len=64"], r"max_seq_len=128 is more than .*=64"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused_with_the_arithmetic(recipe, flags, message):
    with pytest.raises(UserError, match=message):
        main([recipe, "--topology=h200:8", *flags])


def test_a_recipe_that_does_not_fit_says_what_is_missing_and_what_to_change(capsys):
    command = ["--config=configs/vpit_8b.py", "--topology=h100:8", "--stage=vpit"]
    assert main([*command, "--config.mesh.fsdp=8"]) == 1
    text = capsys.readouterr().out
    assert "does not fit: vpit on h100:8 needs" in text
    assert "GiB a chip are missing" in text
    assert "--config.stages.vpit.grad_accum_steps=2 has 12 instead of 24 rows" in text
    # Following the advice mends it.
    assert main([*command, "--config.mesh.fsdp=8", "--config.stages.vpit.grad_accum_steps=8"]) == 0


@needs_libtpu
@pytest.mark.slow
def test_the_real_step_is_compiled_for_a_small_pod(recipe, tmp_path):
    file = tmp_path / "plan.json"
    command = [sys.executable, "-m", "metamorph_jax.plan", recipe, "--topology=v5e:2x2"]
    command += ["--stage=vpit", f"--json={file}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "compiling vpit for v5e:2x2 ..." in done.stderr
    plan = json.loads(file.read_text())
    memory, flops = plan["bytes_per_chip"]["vpit"], plan["flops"]["vpit"]
    assert memory["parts"]["needed"]["source"] == "compiled"
    assert flops["hardware_source"] == "compiled"
    assert 1.0 < flops["hardware_per_model"] < 1.6
    exchanged = plan["collectives"]["vpit"]
    assert {row["axis"] for row in exchanged["rows"]} == {"fsdp"}
    assert exchanged["activation_bytes"] == 0


@needs_libtpu
def test_a_mesh_that_does_not_lie_along_the_torus_is_refused(recipe):
    with pytest.raises(UserError, match=r"does not lie along the axes of this pod, 4x4x4 chips"):
        main(
            [
                recipe,
                "--topology=v5p:4x4x4",
                "--config.mesh.data=2",
                "--config.mesh.fsdp=32",
                "--config.stages.vpit.global_batch_size=64",
                "--config.stages.adapter.global_batch_size=64",
            ]
        )
