"""Weights in, trained, and out again, as a user does it: `python -m metamorph_jax.convert`."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.numpy import save_file

from metamorph_jax import convert
from metamorph_jax.decoding.generator import Generator, Prompt, Sampling
from metamorph_jax.errors import UserError
from metamorph_jax.hub import auto, metamorph
from metamorph_jax.hub.model_card import loading_snippet
from metamorph_jax.hub.tensor_files import TensorFolder
from tests import injection
from tests.hub_folders import write_model, write_parts, write_tensors
from tests.model_helpers import random_params
from tests.parity.torch_models import randomise
from tests.tiny import tiny_model

auto.register()
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
VISION |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 4}


def run(*arguments):
    return convert.main([str(argument) for argument in arguments])


def copy_tokenizer(name, folder):
    for file in injection.folder(name).iterdir():
        shutil.copy(file, folder)


def write_decoder(folder, name="bpe_llama3", num_rows=0):
    tokenizer = injection.tokenizer(name)
    config = transformers.LlamaConfig(**TEXT, vocab_size=tokenizer.vocab_size + num_rows)
    randomise(transformers.LlamaForCausalLM(config), 0).save_pretrained(folder)
    copy_tokenizer(name, folder)
    (folder / "README.md").write_text("---\nlicense: llama3.1\n---\n# a model\n")
    (folder / "LICENSE").write_text("terms")
    return folder


def write_tower(folder):
    config = transformers.SiglipVisionConfig(**VISION)
    randomise(transformers.SiglipVisionModel(config), 1).save_pretrained(folder)
    return folder


def write_llava(folder, name="bpe_llama3"):
    """Writes what LLaVA-1.5 is on the hub: CLIP, read at the layer before last, and a Llama."""
    tokenizer = injection.tokenizer(name)
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT, vocab_size=tokenizer.vocab_size),
        vision_config=transformers.CLIPVisionConfig(**VISION, projection_dim=8),
        image_token_index=tokenizer.names["<|reserved_special_token_0|>"],
    )
    model = randomise(transformers.LlavaForConditionalGeneration(config), 2)
    with torch.no_grad():  # it goes on answering
        model.lm_head.weight[[tokenizer.special.end_of_turn, tokenizer.special.end_of_text]] = 0
    model.save_pretrained(folder)
    saved = TensorFolder(folder)  # this release leaves out a part of the hub's names
    tensors = {
        name.replace("vision_tower.", "vision_tower.vision_model."): np.array(saved.read(name))
        for name in saved.specs
    }
    write_tensors(folder, tensors)
    copy_tokenizer(name, folder)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Returns a folder with a decoder, a tower, and a LLaVA, and imports of both."""
    root = tmp_path_factory.mktemp("hub")
    write_decoder(root / "llm")
    write_tower(root / "vision")
    write_llava(root / "llava")
    options = [f"--llm={root / 'llm'}", f"--vision={root / 'vision'}"]
    assert run("hf-to-orbax", *options, f"--out={root / 'metamorph'}") == 0
    assert run("hf-to-orbax", f"--model={root / 'llava'}", f"--out={root / 'read'}") == 0
    Image.fromarray(picture()).save(root / "picture.png")
    return root


def picture():
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def load(kind, folder):
    """Returns the model, after asserting that every one of its tensors came from the folder."""
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def test_inspect(world, capsys):
    assert run("inspect", world / "llm") == 0
    text = capsys.readouterr().out
    assert "a decoder" in text and "model_type 'llama'" in text and "parameters used" in text
    assert run("inspect", world / "vision") == 0
    assert "a vision tower" in capsys.readouterr().out
    assert run("inspect", world / "llava") == 0
    text = capsys.readouterr().out
    assert "a whole model" in text and "connector" in text


def test_inspect_of_a_model_that_only_names_its_tower(tmp_path, capsys):
    model = tiny_model()
    _, tower = write_parts(tmp_path, model, random_params(model))
    folder = write_model(tmp_path / "hf", model, metamorph.to_hf(random_params(model), model))
    assert run("inspect", folder) == 1
    assert "name the folder of that tower, too (--vision=DIR)" in capsys.readouterr().out
    assert run("inspect", folder, f"--vision={tower}") == 0
    assert "vision_head    408 parameters used" in capsys.readouterr().out


def test_inspect_says_what_is_wrong(world, tmp_path, capsys):
    folder = shutil.copytree(world / "llm", tmp_path / "llm")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    assert run("inspect", folder) == 1
    assert "model.layers.0.mlp.gate_proj.weight has shape [48, 32]" in capsys.readouterr().out


def add_empty_tensor(file, name):
    """Adds a tensor without numbers to a safetensors file, under any name at all."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    place = len(content) - end
    header[name] = {"dtype": "F32", "shape": [0], "data_offsets": [place, place]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


@pytest.mark.parametrize("part", ["codebook", "model.layers.0"])
def test_inspect_shows_hostile_names_and_obeys_none(world, tmp_path, capsys, part):
    folder = shutil.copytree(world / "llm", tmp_path / "llm")
    add_empty_tensor(folder / "model.safetensors", f"{part}.\x1b[2J\x9b\ud800\u202e")
    assert run("inspect", folder) == (part != "codebook")  # which is never used
    text = capsys.readouterr().out
    assert f"{part}.␛[2J\ufffd\\ud800⟨U+202E⟩" in text
    assert not set("\x1b\x9b\u202e").intersection(text)


def test_inspect_names_a_tokenizer_that_cannot_be_used(world, tmp_path, capsys):
    folder = shutil.copytree(world / "llm", tmp_path / "llm")
    (tmp_path / "secret").touch()
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.jinja").symlink_to(tmp_path / "secret")
    assert run("inspect", folder) == 0
    assert "chat_template.jinja is a link to" in capsys.readouterr().out


def test_export_of_metamorph_answers_as_we_do(world, tmp_path):
    assert run("orbax-to-hf", world / "metamorph", f"--out={tmp_path / 'out'}") == 0
    theirs = load(transformers.AutoModelForImageTextToText, tmp_path / "out")
    ours = Generator.load(world / "metamorph")
    (answer,) = ours.generate([Prompt("<image>\nWhat?", (picture(),))], Sampling(max_new_tokens=24))
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    content = [{"type": "image"}, {"type": "text", "text": "\nWhat?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        images=[picture()],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        found = theirs.generate_multimodal(**inputs, max_new_tokens=24)
    ids = found.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    steps = [-1 if id_ == theirs.config.image_token_id else id_ for id_ in ids]
    assert steps[: len(answer.steps)] == answer.steps


@pytest.mark.parametrize("source", ["imported", "trained"])
def test_export_of_llava_answers_as_we_do(world, tmp_path, source):
    checkpoint = world / "read"
    if source == "trained":  # nothing but our own parameters is left of the tower
        checkpoint = shutil.copytree(world / "read", tmp_path / "run")
        step = checkpoint / "checkpoints" / "00000000"
        (step / "unused.safetensors").unlink()
        rewrite_manifest(step)
    out = tmp_path / "out"
    assert run("orbax-to-hf", checkpoint, f"--out={out}") == 0
    theirs = load(transformers.LlavaForConditionalGeneration, out)
    processor = transformers.AutoProcessor.from_pretrained(out)
    prompts = {"<image>\nWhat is this?": [picture()], "Say a word.": []}
    ours = Generator.load(checkpoint)
    sampling = Sampling(max_new_tokens=32)
    for text, images in prompts.items():
        (answer,) = ours.generate([Prompt(text, tuple(images))], sampling)
        content = [{"type": "image"}] * len(images)
        content += [{"type": "text", "text": text.removeprefix("<image>")}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = processor(
            text=prompt, images=images or None, add_special_tokens=False, return_tensors="pt"
        )
        with torch.no_grad():
            found = theirs.generate(**inputs, max_new_tokens=32, do_sample=False)
        ids = found[0, inputs["input_ids"].shape[1] :].tolist()
        assert ids == answer.ids and len(ids) == 32


def rewrite_manifest(step):
    from metamorph_jax.checkpoints.manifest import read_manifest, write_manifest

    write_manifest(step, read_manifest(step).arrays)


def test_llava_there_and_back_is_byte_identical(world, tmp_path):
    assert run("orbax-to-hf", world / "read", f"--out={tmp_path / 'out'}") == 0
    before, after = TensorFolder(world / "llava"), TensorFolder(tmp_path / "out")
    assert before.specs.keys() == after.specs.keys()
    for name in before.specs:
        assert before.read(name).tobytes() == after.read(name).tobytes(), name
    assert run("hf-to-orbax", f"--model={tmp_path / 'out'}", f"--out={tmp_path / 'again'}") == 0


def add_unused(checkpoint, tensors):
    """Puts tensors beside an imported checkpoint, as an import of another folder would."""
    step = checkpoint / "checkpoints" / "00000000"
    kept = TensorFolder(step)  # of the one file there
    tensors |= {name: np.array(kept.read(name)) for name in kept.specs}
    save_file(tensors, step / "unused.safetensors")
    rewrite_manifest(step)


def test_leftovers_that_the_exported_model_has_no_place_for(world, tmp_path):
    checkpoint = shutil.copytree(world / "read", tmp_path / "run")
    positions = np.arange(65, dtype=np.int64)[None]
    ones = np.ones((4, 4), np.float32)
    add_unused(
        checkpoint,
        {
            "vision_head/0.weight": ones,
            "vision_tower/head.probe": ones,
            "language_model/lm_head.weight": ones,
            "language_model/model.layers.0.self_attn.rotary_emb.inv_freq": ones,
            "vision_tower/embeddings.position_ids": positions,
        },
    )
    assert run("orbax-to-hf", checkpoint, f"--out={tmp_path / 'out'}", "--dtype=bf16") == 0
    found = TensorFolder(tmp_path / "out")
    place = "vision_tower.vision_model.embeddings.position_ids"
    assert found.specs.keys() == TensorFolder(world / "llava").specs.keys() | {place}
    np.testing.assert_array_equal(found.read(place), positions)
    assert found.read(place).dtype == np.int64
    assert {str(spec.dtype) for spec in found.specs.values()} == {"bfloat16", "int64"}


def test_what_is_too_large_for_a_dtype_is_named(world, tmp_path, caplog):
    name = "vision_tower/post_layernorm.bias"
    checkpoint = shutil.copytree(world / "read", tmp_path / "run")
    step = checkpoint / "checkpoints" / "00000000"
    kept = TensorFolder(step)
    tensors = {own: np.array(kept.read(own)) for own in kept.specs}
    tensors[name][0] = 70_000
    save_file(tensors, step / "unused.safetensors")
    rewrite_manifest(step)
    assert run("orbax-to-hf", checkpoint, f"--out={tmp_path / 'bf16'}", "--dtype=bf16") == 0
    assert "infinity" not in caplog.text
    assert run("orbax-to-hf", checkpoint, f"--out={tmp_path / 'fp16'}", "--dtype=fp16") == 0
    assert f"NaN or infinity in 1 tensor(s) as float16, such as {name}" in caplog.text


@pytest.mark.parametrize("command", ["hf-to-orbax", "orbax-to-hf"])
def test_sigterm_leaves_nothing_unfinished(world, tmp_path, monkeypatch, command):
    def terminate(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    out, before = tmp_path / "there" / "out", signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(convert._Bytes, "set", terminate)  # when the first bytes are written
    source = {"orbax-to-hf": world / "read", "hf-to-orbax": f"--model={world / 'llava'}"}[command]
    with pytest.raises(SystemExit, match="143"):
        run(command, source, f"--out={out}")
    assert not out.parent.exists() or list(out.parent.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if "one ahead" in thread.name]
    assert signal.getsignal(signal.SIGTERM) is before


def test_every_file_is_forced_to_the_disk(world, tmp_path, monkeypatch):
    forced, fsync = set(), os.fsync

    def note(descriptor):
        forced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    assert run("orbax-to-hf", world / "metamorph", f"--out={tmp_path / 'out'}") == 0
    assert {file.stat().st_ino for file in (tmp_path / "out").iterdir()} <= forced
    assert (tmp_path / "out").stat().st_mode == (world / "metamorph").stat().st_mode


@pytest.mark.parametrize("target", ["nowhere", "empty"])
def test_a_link_is_not_written_to(world, tmp_path, target):
    (tmp_path / "empty").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / target)
    with pytest.raises(UserError, match="is a symbolic link; name a new folder"):
        run("orbax-to-hf", world / "read", f"--out={tmp_path / 'out'}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "out"]


def test_the_card(world, tmp_path):
    out = tmp_path / "out"
    assert run("orbax-to-hf", world / "metamorph", f"--out={out}") == 0
    card = (out / "README.md").read_text()
    assert f"{world / 'llm'}: llama3.1, see its LICENSE" in card
    assert f"{world / 'vision'}: states none" in card
    assert "config.model.llm.num_layers = 2" in card and "commit" in card


@pytest.mark.parametrize(
    ("checkpoint", "kind"),
    [
        ("metamorph", "MetaMorphForConditionalGeneration"),
        ("read", "LlavaForConditionalGeneration"),
    ],
)
def test_the_lines_of_the_card_load_the_folder(world, tmp_path, checkpoint, kind):
    out = tmp_path / "out"
    assert run("orbax-to-hf", world / checkpoint, f"--out={out}", "--dtype=bf16") == 0
    snippet = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert snippet == loading_snippet(kind)
    assert ("trust_remote_code" in snippet) == (checkpoint == "metamorph")
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=out, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {str(spec.dtype) for spec in TensorFolder(out).specs.values()} == {"bfloat16"}


def test_mistakes(world, tmp_path):
    with pytest.raises(UserError, match="name what to import"):
        run("hf-to-orbax", f"--out={tmp_path / 'x'}")
    swapped = [f"--llm={world / 'vision'}", f"--vision={world / 'llm'}", f"--out={tmp_path / 'x'}"]
    with pytest.raises(UserError, match="expected a language_model in it, found vision_tower"):
        run("hf-to-orbax", *swapped)
    with pytest.raises(UserError, match="expected one whole model, or one decoder and one vision"):
        run("hf-to-orbax", f"--llm={world / 'llm'}", f"--out={tmp_path / 'x'}")
    with pytest.raises(UserError, match="is there already"):
        run("hf-to-orbax", f"--model={world / 'llava'}", f"--out={world / 'read'}")
    with pytest.raises(UserError, match="no --config=FILE to change"):
        run("hf-to-orbax", f"--llm={world / 'llm'}", "--out=x", "--config.seed=1")
    with pytest.raises(UserError, match="there is no checkpoint"):
        run("orbax-to-hf", tmp_path, f"--out={tmp_path / 'x'}")
    with pytest.raises(UserError, match="is there already and not empty"):
        run("orbax-to-hf", world / "read", f"--out={world / 'llava'}")
    with pytest.raises(UserError, match="name what to import"):
        run("hf-to-orbax", f"--model={world / 'llava'}", f"--llm={world / 'llm'}", "--out=x")
    before = (world / "read" / "tokenizer" / "tokenizer.json").read_bytes()
    with pytest.raises(UserError, match="is there already"):
        parts = [f"--{name}={world / name}" for name in ("llm", "vision")]
        run("hf-to-orbax", *parts, f"--out={world / 'read'}")
    assert (world / "read" / "tokenizer" / "tokenizer.json").read_bytes() == before
    assert not (tmp_path / "x").exists()


def test_broken_weights_leave_nothing_behind(world, tmp_path):
    folder = shutil.copytree(world / "llava", tmp_path / "llava")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 40
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"mlp\.gate_proj\.weight has shape"):
        run("hf-to-orbax", f"--model={folder}", f"--out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_with_fewer_ids_than_the_tables_have_rows(tmp_path):
    """As Qwen's: the new image tokens take rows that are there, and these become the mean."""
    decoder = write_decoder(tmp_path / "llm", "bpe_chatml", num_rows=64)
    assert "<image_start>" not in injection.tokenizer("bpe_chatml").names
    tower = write_tower(tmp_path / "vision")
    out = tmp_path / "run"
    assert run("hf-to-orbax", f"--llm={decoder}", f"--vision={tower}", f"--out={out}") == 0
    generator = Generator.load(out)
    first = generator.tokenizer.special.image_start
    stored = np.array(TensorFolder(decoder).read("model.embed_tokens.weight"))
    table = np.asarray(generator.params["language_model"]["embed_tokens"]["embedding"])
    assert len(stored) == generator.config.llm.vocab_size > first + 1
    np.testing.assert_allclose(table[[first, first + 1]], [stored.mean(0)] * 2, rtol=0, atol=1e-6)


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """Yields a folder on a disk of 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(disk)]
    if subprocess.run(command, capture_output=True).returncode == 0:
        yield disk
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
        return

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # where nothing may be mounted
    yield disk


def test_a_disk_that_fills_up_leaves_nothing_that_looks_whole(world, small_disk):
    with pytest.raises(
        UserError, match=r"no space left; .* bytes are needed, and nothing was kept"
    ):
        run("orbax-to-hf", world / "metamorph", f"--out={small_disk / 'out'}")
    assert list(small_disk.iterdir()) == []
    with pytest.raises(UserError, match="no space left for"):
        options = [f"--llm={world / 'llm'}", f"--vision={world / 'vision'}"]
        run("hf-to-orbax", *options, f"--out={small_disk / 'run'}")
    assert not (small_disk / "run").exists()


def test_a_run_begins_from_the_folders_that_its_recipe_names(world, tmp_path):
    """The same, whether a recipe names the folders or what was imported from them."""
    import dataclasses

    import jax

    from metamorph_jax.config.schema_run import MeshConfig
    from metamorph_jax.decoding.generator import CheckpointStore
    from metamorph_jax.hub.from_checkpoint import open_checkpoint
    from metamorph_jax.models.init import abstract_params
    from metamorph_jax.sharding.mesh import create_mesh
    from metamorph_jax.training.initial import create_params
    from metamorph_jax.trees import flatten

    trained = open_checkpoint(Path(world / "metamorph"))
    model = trained.run.model
    assert model.init_from == (str(world / "llm"), str(world / "vision"))
    stored, _ = CheckpointStore(world / "metamorph" / "checkpoints").restore_params(
        abstract_params(model)
    )
    mesh = create_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    own = dataclasses.replace(model, init_from=(str(world / "metamorph"),))
    for config in (model, own):
        params = create_params(config, trained.run.seed, mesh)
        for name, value in flatten(params).items():
            np.testing.assert_array_equal(value, flatten(stored)[name], err_msg=name)
