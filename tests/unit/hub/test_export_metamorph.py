"""The files of an exported folder."""

import dataclasses
import subprocess
import sys

import pytest

from metamorph_jax.data.templates import TEMPLATES, stop_ids
from metamorph_jax.data.tokenizer import load_tokenizer
from metamorph_jax.errors import UserError
from metamorph_jax.hub.export_metamorph import REMOTE_FILES, metamorph_files
from tests import injection
from tests.data_files import small_tokenizer
from tests.golden_data import LLAVA
from tests.tiny import tiny_model


def config_for(tokenizer, extra=0):
    config = tiny_model()
    llm = dataclasses.replace(config.llm, vocab_size=tokenizer.vocab_size + extra)
    return dataclasses.replace(config, llm=llm)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_all_files_are_there_and_code_is_verbatim(tokenizer):
    files = metamorph_files(config_for(tokenizer), tokenizer, TEMPLATES["llama3"], "pad", "float32")
    code = {name for name in files if name.endswith(".py")}
    assert code == set(REMOTE_FILES)
    assert set(files) - code == {
        "config.json",
        "generation_config.json",
        "processor_config.json",
        "preprocessor_config.json",
        "chat_template.jinja",
    }
    named = {entry.split(".")[0] for entry in files["config.json"]["auto_map"].values()}
    assert {f"{module}.py" for module in named} <= code
    assert files["processor_config.json"]["image_geometry"] == "pad"
    assert files["config.json"]["dtype"] == "float32"


def test_answers_contain_text_and_what_ends_them(tokenizer):
    config = config_for(tokenizer, extra=2)
    generation = metamorph_files(config, tokenizer, TEMPLATES["metamorph_llama3"])[
        "generation_config.json"
    ]
    stop = stop_ids(TEMPLATES["metamorph_llama3"], tokenizer)
    assert generation["eos_token_id"] == list(stop)
    allowed = set(range(config.llm.vocab_size)) - set(generation["suppress_tokens"])
    text = set(range(tokenizer.vocab_size)) - tokenizer.control_ids
    assert allowed == text | set(stop)


def test_control_tokens_that_the_folder_does_not_mark(tmp_path):
    tokenizer = small_tokenizer(tmp_path)
    definition = (tmp_path / "tokenizer.json").read_text()
    start = definition.index('"content": "<image_start>"')
    unmarked = definition[start:].replace('"special": true', '"special": false', 1)
    (tmp_path / "tokenizer.json").write_text(definition[:start] + unmarked)
    changed = load_tokenizer(tmp_path)
    assert changed.names == tokenizer.names
    for used, expected in ((tokenizer, []), (changed, ["<image_start>"])):
        files = metamorph_files(config_for(used), used, TEMPLATES["llama3"])
        assert files["processor_config.json"]["control_tokens"] == expected


def test_the_folders_own_template_is_kept():
    used = injection.tokenizer("bpe_llama3")
    files = metamorph_files(config_for(used), used, TEMPLATES["jinja"])
    assert files["chat_template.jinja"].decode() == used.chat_template


@pytest.mark.parametrize(
    ("template", "name", "message"),
    [
        ("v1", "bpe_llama3", "v1 has no tokens around images"),
        ("llama3", "sp_legacy", "read from tokenizer.json"),
        ("jinja", None, "no chat template"),
    ],
)
def test_what_cannot_be_exported_is_refused(template, name, message, tokenizer):
    used = load_tokenizer(LLAVA / "tokenizers" / name) if name else tokenizer
    with pytest.raises(UserError, match=message):
        metamorph_files(config_for(used), used, TEMPLATES[template])


@pytest.mark.parametrize(
    ("name", "why"), [("cambrian_llama3", "moves images"), ("v0", "moves images")]
)
def test_templates_that_the_processor_cannot_write_are_refused(tokenizer, name, why):
    template = dataclasses.replace(TEMPLATES[name], image_tokens=True)
    with pytest.raises(UserError, match=f"template {name} {why}"):
        metamorph_files(config_for(tokenizer), tokenizer, template)


def test_export_needs_neither_jax_nor_torch():
    code = (
        "import sys, metamorph_jax.hub.export_metamorph;"
        "sys.exit(' '.join({'jax', 'torch', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
