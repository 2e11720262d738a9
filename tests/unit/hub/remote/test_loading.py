"""An exported folder: alone as remote code, with the package without it, and saved again."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from metamorph_jax.hub import auto
from metamorph_jax.hub.configs import read_model_config
from metamorph_jax.hub.export_metamorph import REMOTE_FILES
from metamorph_jax.hub.metamorph import from_hf, to_hf
from metamorph_jax.hub.remote.modeling_metamorph import (
    MetaMorphForConditionalGeneration,
    MetaMorphModel,
)
from metamorph_jax.hub.remote.processing_metamorph import MetaMorphProcessor
from tests.data_files import small_tokenizer
from tests.exported import write_export
from tests.model_helpers import random_params
from tests.tiny import tiny_model

MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "<image>?\n"}]},
    {"role": "assistant", "content": "\nA <|eot_id|> cat."},
    {"role": "user", "content": "Draw a dog."},
]

# Runs where nothing of the package can be imported, as for everyone who only has the folder.
ALONE = """
import importlib.util, json, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
assert importlib.util.find_spec("metamorph_jax") is None
import numpy as np, torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
folder, saved, messages = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
trust = {"trust_remote_code": True}
processor = AutoProcessor.from_pretrained(folder, **trust)
model, info = AutoModelForImageTextToText.from_pretrained(
    folder, output_loading_info=True, **trust
)
assert not any(info.values()), info
base = AutoModel.from_pretrained(folder, **trust)
causal = AutoModelForCausalLM.from_pretrained(folder, **trust)
assert not hasattr(base, "lm_head") and hasattr(causal, "lm_head")
assert "transformers_modules" in type(model).__module__
inputs = processor.apply_chat_template(
    messages, images=[np.full((9, 7, 3), 99, np.uint8)], add_generation_prompt=True,
    tokenize=True, return_dict=True, return_tensors="pt",
)
answers = model.generate_multimodal(**inputs, max_new_tokens=9)
text = model.generate(**inputs, max_new_tokens=5)
model.save_pretrained(saved)
processor.save_pretrained(saved)
result = {"ids": inputs["input_ids"].tolist(), "answers": answers.sequences.tolist()}
result |= {"text": text.tolist(), "hidden": base(**inputs).last_hidden_state.tolist()}
print(json.dumps(result))
"""


def run_alone(code, *arguments, folder):
    """Returns what a fresh interpreter says: (return code, output, errors)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, *arguments],
        cwd=folder,
        env=kept | {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Returns (folder, configuration, tensors) of an export."""
    root = tmp_path_factory.mktemp("export")
    tokenizer = small_tokenizer(root / "tokenizer")
    config = tiny_model()
    llm = dataclasses.replace(config.llm, vocab_size=tokenizer.vocab_size)
    config = dataclasses.replace(config, llm=llm)
    tensors = write_export(root / "model", config, random_params(config), tokenizer)
    return root / "model", config, tensors


def test_loads_alone_and_says_what_it_says_here(exported, tmp_path):
    folder, _, tensors = exported
    saved = tmp_path / "saved"
    arguments = (str(folder), str(saved), json.dumps(MESSAGES))
    code, output, errors = run_alone(ALONE, *arguments, folder=tmp_path)
    assert code == 0, errors
    alone = json.loads(output.splitlines()[-1])
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    inputs = processor.apply_chat_template(
        MESSAGES,
        images=[np.full((9, 7, 3), 99, np.uint8)],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert alone["ids"] == inputs["input_ids"].tolist()
    answers = model.generate_multimodal(**inputs, max_new_tokens=9)
    assert alone["answers"] == answers.sequences.tolist()
    assert alone["text"] == model.generate(**inputs, max_new_tokens=5).tolist()
    # What it saves is an export again, code included.
    assert {file.name for file in saved.glob("*.py")} == set(REMOTE_FILES)
    for name in REMOTE_FILES:
        assert (saved / name).read_bytes() == (folder / name).read_bytes()
    check_tensors(saved, tensors)
    again, info = AutoModelForImageTextToText.from_pretrained(saved, output_loading_info=True)
    assert not any(info.values())
    assert again.generate(**inputs, max_new_tokens=5).tolist() == alone["text"]
    second = AutoProcessor.from_pretrained(saved)
    assert second.apply_chat_template(MESSAGES) == processor.apply_chat_template(MESSAGES)


def check_tensors(folder, tensors):
    found = load_file(folder / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].tobytes() == tensor.tobytes(), name


def test_without_trust_the_error_says_so(exported, tmp_path):
    code = (
        "import sys, transformers as t; t.AutoModelForImageTextToText.from_pretrained(sys.argv[1])"
    )
    code, _, errors = run_alone(code, str(exported[0]), folder=tmp_path)
    assert code != 0
    assert "trust_remote_code=True" in errors.splitlines()[-1] + errors.splitlines()[-2]


def test_registered_classes_load_without_remote_code(exported):
    folder, *_ = exported
    auto.register()
    auto.register()
    for loader, expected in (
        (AutoModel, MetaMorphModel),
        (AutoModelForCausalLM, MetaMorphForConditionalGeneration),
        (AutoModelForImageTextToText, MetaMorphForConditionalGeneration),
        (AutoProcessor, MetaMorphProcessor),
    ):
        assert type(loader.from_pretrained(folder)) is expected


@pytest.mark.parametrize("tied", [False, True])
def test_round_trip_is_byte_identical(tied, tmp_path):
    """Ours -> folder -> transformers -> folder -> ours."""
    tokenizer = small_tokenizer(tmp_path / "tokenizer")
    config = tiny_model(connector="linear", vision_head="mlp2x_gelu")
    llm = {"vocab_size": tokenizer.vocab_size + 2, "tie_embeddings": tied}
    config = dataclasses.replace(config, llm=dataclasses.replace(config.llm, **llm))
    params = random_params(config)
    tensors = write_export(tmp_path / "model", config, params, tokenizer)
    assert ("lm_head.weight" in tensors) is not tied
    assert "model.multi_modal_projector.linear.weight" in tensors
    model, info = MetaMorphForConditionalGeneration.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(info.values()), info
    model.save_pretrained(tmp_path / "saved")
    check_tensors(tmp_path / "saved", tensors)
    fields = json.loads((tmp_path / "saved" / "config.json").read_text())
    back = read_model_config(fields)
    params_back = from_hf(load_file(tmp_path / "saved" / "model.safetensors"), back, "composite")
    for name, tensor in to_hf(params_back, back, "composite").items():
        assert tensor.tobytes() == tensors[name].tobytes(), name


def test_shards_load(exported, tmp_path):
    folder, _, tensors = exported
    model = MetaMorphForConditionalGeneration.from_pretrained(folder)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    again, info = MetaMorphForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values())
    assert {name for name, _ in again.named_parameters()} == set(tensors)


def test_config_of_the_folder_is_known_by_its_type(exported):
    config = AutoConfig.from_pretrained(exported[0])
    assert (config.model_type, config.num_vision_blocks) == ("metamorph", 2)
