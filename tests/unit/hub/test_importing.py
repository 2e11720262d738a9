"""Folders -> sources -> checkpoint -> folders, with what may be wrong with them."""

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from metamorph_jax.checkpoints.manifest import verify
from metamorph_jax.checkpoints.store import CheckpointStore
from metamorph_jax.checkpoints.streaming import open_params
from metamorph_jax.config.schema_run import RunConfig, TokenizerConfig
from metamorph_jax.errors import UserError
from metamorph_jax.hub import metamorph
from metamorph_jax.hub.exporting import tensors_to_write
from metamorph_jax.hub.importing import ArraySource, NanWatch, find_sources, is_finite
from metamorph_jax.hub.tensor_files import TensorFolder
from metamorph_jax.hub.tensor_writer import write_folder
from metamorph_jax.hub.to_checkpoint import Plan, import_checkpoint
from metamorph_jax.models.init import abstract_params, init_params
from metamorph_jax.trees import flatten
from tests.hub_folders import write_model, write_parts
from tests.model_helpers import random_params
from tests.tiny import tiny_model

MODEL = tiny_model()
BF16 = np.dtype(ml_dtypes.bfloat16)


def write(folder, tensors, layout="native", **options):
    return write_model(folder, MODEL, tensors, layout, **options)


def whole(source):
    return source.read(tuple(slice(0, size) for size in source.shape))


def run(model=MODEL):
    return Plan(
        RunConfig(name="imported", model=model, tokenizer=TokenizerConfig(path=""), stages=())
    )


@pytest.mark.parametrize("layout", ["native", "composite"])
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BF16])
def test_there_and_back_is_byte_identical(tmp_path, layout, dtype):
    model = dataclasses.replace(MODEL, param_dtype=str(dtype))
    tensors = {
        name: value.astype(dtype)
        for name, value in metamorph.to_hf(random_params(MODEL), MODEL, layout).items()
    }
    source = write(tmp_path / "hf", tensors, layout, max_shard_bytes=5000)
    checkpoint, _ = import_checkpoint(run(model), [source], tmp_path / "run")
    verify(checkpoint)
    again = tmp_path / "again"
    again.mkdir()
    write_folder(again, tensors_to_write(model, open_params(checkpoint), layout, None))
    shutil.copy(source / "config.json", again)
    found = TensorFolder(again)
    assert found.specs.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found.read(name).tobytes() == value.tobytes(), name
    # And once more from our side: the same parameters again.
    second, _ = import_checkpoint(run(model), [again], tmp_path / "run2")
    for name, reader in open_params(checkpoint).items():
        assert whole(reader).tobytes() == whole(open_params(second)[name]).tobytes(), name


def test_parts_of_an_array_are_parts_of_the_whole(tmp_path):
    tensors = metamorph.to_hf(random_params(MODEL), MODEL)
    grown = dataclasses.replace(MODEL, llm=dataclasses.replace(MODEL.llm, vocab_size=45))
    sources = find_sources(grown, [write(tmp_path / "hf", tensors)], NanWatch())
    rng = np.random.default_rng(0)
    for source in sources.values():
        full = whole(source)
        assert full.shape == source.shape
        for _ in range(6):
            cuts = [sorted(rng.choice(size + 1, 2, replace=False)) for size in source.shape]
            index = tuple(slice(int(a), int(b)) for a, b in cuts)
            np.testing.assert_array_equal(source.read(index), full[index])


def test_new_rows_are_the_mean_and_padding_is_zero(tmp_path):
    tensors = metamorph.to_hf(random_params(MODEL), MODEL)
    grown = dataclasses.replace(MODEL, llm=dataclasses.replace(MODEL.llm, vocab_size=42))
    sources = find_sources(grown, [write(tmp_path / "hf", tensors)], NanWatch())
    table = whole(sources["language_model/embed_tokens/embedding"])
    old = tensors["model.embed_tokens.weight"]
    assert table.shape == (48, 16)
    np.testing.assert_array_equal(table[:40], old)
    np.testing.assert_allclose(table[40:42], np.stack([old.mean(0)] * 2), rtol=0, atol=1e-7)
    assert not table[42:].any()
    head = whole(sources["language_model/lm_head/kernel"])
    mean = tensors["lm_head.weight"].mean(0)
    np.testing.assert_allclose(head[:, 40:42], np.stack([mean] * 2, 1), rtol=0, atol=1e-7)


@pytest.mark.parametrize("vocab_size", [39, 4000])
def test_a_vocabulary_of_another_model(tmp_path, vocab_size):
    folder = write(tmp_path / "hf", metamorph.to_hf(random_params(MODEL), MODEL))
    other = dataclasses.replace(MODEL, llm=dataclasses.replace(MODEL.llm, vocab_size=vocab_size))
    with pytest.raises(UserError, match=f"holds 40 tokens, the configuration needs {vocab_size:,}"):
        find_sources(other, [folder], NanWatch())


def test_parts_from_several_folders_and_new_ones(tmp_path):
    tensors = metamorph.to_hf(random_params(MODEL), MODEL)
    folders = write_parts(tmp_path, MODEL, random_params(MODEL))
    checkpoint, _ = import_checkpoint(run(), folders, tmp_path / "run")
    params, meta = CheckpointStore(tmp_path / "run" / "checkpoints").restore_params(
        abstract_params(MODEL)
    )
    assert (meta.step, meta.stage) == (0, "import")
    wanted = flatten(metamorph.from_hf(tensors, MODEL))
    fresh = flatten(init_params(MODEL, jax.random.key(0)))
    for name, value in flatten(params).items():
        is_new = name.startswith(("connector", "vision_head"))
        np.testing.assert_array_equal(value, (fresh if is_new else wanted)[name], err_msg=name)
    assert not (checkpoint / "unused.safetensors").exists()


def test_of_a_part_that_two_folders_hold_the_first_is_taken(tmp_path, caplog):
    decoder, _ = write_parts(tmp_path, MODEL, random_params(MODEL, seed=1))
    model = write(tmp_path / "hf", metamorph.to_hf(random_params(MODEL), MODEL))
    sources = find_sources(MODEL, [decoder, model], NanWatch())
    assert "language_model is taken from" in caplog.text and "decoder instead" in caplog.text
    wanted = random_params(MODEL, seed=1)["language_model"]["final_norm"]["scale"]
    np.testing.assert_array_equal(whole(sources["language_model/final_norm/scale"]), wanted)
    wanted = random_params(MODEL)["connector"]["layers_0"]["bias"]
    np.testing.assert_array_equal(whole(sources["connector/layers_0/bias"]), wanted)


def test_a_recipe_of_another_model(tmp_path):
    folder = write(tmp_path / "hf", metamorph.to_hf(random_params(MODEL), MODEL))
    llm = dataclasses.replace(MODEL.llm, rope_theta=5e5, norm_eps=1e-6)
    vision = dataclasses.replace(MODEL.vision, num_heads=4)
    other = dataclasses.replace(MODEL, llm=llm, vision=vision)
    with pytest.raises(UserError) as error:
        find_sources(other, [folder], NanWatch())
    message = str(error.value)
    assert f"model.llm.rope_theta is 500000.0 in the recipe, 10000.0 in {folder}" in message
    assert "model.llm.norm_eps is 1e-06 in the recipe, 1e-05" in message
    # A tower's heads stand in its own config.json, which this folder does not have.
    decoder, tower = write_parts(tmp_path, MODEL, random_params(MODEL))
    with pytest.raises(UserError, match=r"model.vision.num_heads is 4 in the recipe, 2 in .*tower"):
        find_sources(dataclasses.replace(MODEL, vision=vision), [decoder, tower], NanWatch())


def test_our_own_checkpoint_is_a_folder_too(tmp_path):
    folder = write(tmp_path / "hf", metamorph.to_hf(random_params(MODEL), MODEL))
    import_checkpoint(run(), [folder], tmp_path / "run")
    half = dataclasses.replace(MODEL, param_dtype="bfloat16")
    sources = find_sources(half, [tmp_path / "run"], NanWatch())
    for name, source in find_sources(half, [folder], NanWatch()).items():
        np.testing.assert_array_equal(whole(sources[name]), whole(source))


def test_a_run_of_another_model_is_refused(tmp_path):
    folder = write(tmp_path / "hf", metamorph.to_hf(random_params(MODEL), MODEL))
    import_checkpoint(run(), [folder], tmp_path / "run")
    for changed, message in [
        ({"llm": {"rope_theta": 5e5}}, r"model.llm.rope_theta is 500000.0 in the recipe, 10000.0"),
        ({"llm": {"vocab_size": 42}}, "model.llm.vocab_size is 42 in the recipe, 40"),
        ({"llm": {"qkv_bias": True}}, "model.llm.qkv_bias is True in the recipe, False"),
        ({"llm": {"tie_embeddings": True}}, "model.llm.tie_embeddings is True"),
        ({"llm": {"mlp_dim": 64}}, "model.llm.mlp_dim is 64 in the recipe, 32"),
        ({"vision": {"norm_eps": 1e-3}}, "model.vision.norm_eps is 0.001 in the recipe, 1e-06"),
    ]:
        ((part, fields),) = changed.items()
        part_changed = dataclasses.replace(getattr(MODEL, part), **fields)
        other = dataclasses.replace(MODEL, **{part: part_changed})
        with pytest.raises(UserError, match=message):
            find_sources(other, [tmp_path / "run"], NanWatch())
        with pytest.raises(UserError, match=message):
            import_checkpoint(run(other), [tmp_path / "run"], tmp_path / "out")
    deeper = dataclasses.replace(MODEL, connector="mlp3x_gelu")
    with pytest.raises(UserError, match="connector/layers_2/kernel"):
        find_sources(deeper, [tmp_path / "run"], NanWatch())
    assert not (tmp_path / "out").exists()


def test_what_a_whole_model_states_has_to_be_there(tmp_path):
    tensors = metamorph.to_hf(random_params(MODEL), MODEL)
    headless = {name: t for name, t in tensors.items() if not name.startswith("vision_head.")}
    with pytest.raises(UserError, match=r"config.json states a vision_head, but no tensor of it"):
        find_sources(MODEL, [write(tmp_path / "hf", headless)], NanWatch())


def test_new_tokens_in_rows_that_were_only_padding(tmp_path):
    """Tables of Qwen have more rows than its tokenizer has ids; they were never trained."""
    tensors = metamorph.to_hf(random_params(MODEL), MODEL)
    folder = write(tmp_path / "hf", tensors)
    sources = find_sources(MODEL, [folder], NanWatch(), new_ids=(37, 38))
    for name, stored, axis in [
        ("language_model/embed_tokens/embedding", tensors["model.embed_tokens.weight"], 0),
        ("language_model/lm_head/kernel", tensors["lm_head.weight"], 1),
    ]:
        table = np.moveaxis(whole(sources[name]), axis, 0)
        np.testing.assert_allclose(table[[37, 38]], [stored.mean(0)] * 2, rtol=0, atol=1e-7)
        np.testing.assert_array_equal(table[[36, 39]], stored[[36, 39]])
        shape = sources[name].shape
        part = [slice(0, size) for size in shape]
        part[axis] = slice(38, 41)
        some = np.moveaxis(sources[name].read(tuple(part)), axis, 0)
        np.testing.assert_array_equal(some, table[38:41])


def test_a_native_tower_that_is_read_before_its_end(tmp_path):
    vision = dataclasses.replace(MODEL.vision, feature_layer=-2)
    model = dataclasses.replace(MODEL, vision=vision)
    tensors = metamorph.to_hf(random_params(MODEL), MODEL)  # with the last block
    folder = write_model(tmp_path / "hf", model, tensors)
    sources = find_sources(model, [folder], NanWatch())
    assert sources["vision_tower/blocks/mlp/up/kernel"].shape[0] == 1


def test_what_is_unused_is_kept_beside_the_checkpoint(tmp_path):
    tensors = metamorph.to_hf(random_params(MODEL), MODEL)
    prefix = "model.vision_tower.vision_tower.vision_model.post_layernorm."
    extra = {f"{prefix}{name}": np.full(8, 3, np.float32) for name in ("weight", "bias")}
    dead = {"model.vision_proj.weight": np.ones((2, 2), np.float32)}
    extra |= {f"{prefix[:-15]}head.probe": np.ones((1, 1, 8), np.float32)}
    folder = write(tmp_path / "hf", tensors | extra | dead)
    checkpoint, _ = import_checkpoint(run(), [folder], tmp_path / "run")
    kept = TensorFolder(checkpoint)
    assert kept.specs.keys() == {
        "vision_tower/post_layernorm.weight",
        "vision_tower/post_layernorm.bias",
    }
    verify(checkpoint)


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    tensors = metamorph.to_hf(random_params(MODEL), MODEL)
    del tensors["model.norm.weight"]
    tensors["model.mm_projector.0.wieght"] = tensors.pop("model.mm_projector.0.weight")
    tensors["vision_head.2.bias"] = np.zeros(9, np.float32)
    folder = write(tmp_path / "hf", tensors)
    with pytest.raises(UserError) as error:
        find_sources(MODEL, [folder], NanWatch())
    message = str(error.value)
    assert "model.norm.weight" in message
    assert "0.wieght (nearest to the first: 0.weight)" in message
    assert "vision_head.2.bias has shape [9]" in message


def test_integers_are_no_weights(tmp_path):
    tensors = metamorph.to_hf(random_params(MODEL), MODEL)
    tensors["model.norm.weight"] = np.ones(16, np.int32)
    with pytest.raises(UserError, match=r"model.norm.weight is of int32; weights are floating"):
        find_sources(MODEL, [write(tmp_path / "hf", tensors)], NanWatch())


def test_names_of_no_family(tmp_path):
    folder = write(tmp_path / "hf", {"transformer.h.0.attn.weight": np.ones(2, np.float32)})
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match=r"no known family, such as transformer.*model_type 'gpt2'"):
        find_sources(MODEL, [folder], NanWatch())


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_seen(dtype, bad):
    part = np.linspace(-60000, 60000, 100).astype(dtype)
    assert is_finite(part)
    part[37] = bad
    assert not is_finite(part)


def test_nan_is_named_and_taken_over(tmp_path, caplog):
    tensors = metamorph.to_hf(random_params(MODEL), MODEL)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    import_checkpoint(run(), [write(tmp_path / "hf", tensors)], tmp_path / "run")
    assert "NaN or infinity in 1 tensor(s): model.layers.1.mlp.up_proj.weight" in caplog.text


def test_a_second_import_into_the_same_folder(tmp_path):
    folder = write(tmp_path / "hf", metamorph.to_hf(random_params(MODEL), MODEL))
    import_checkpoint(run(), [folder], tmp_path / "run")
    with pytest.raises(UserError, match="is there already"):
        import_checkpoint(run(), [folder], tmp_path / "run")


def test_a_parameter_that_is_missing_and_a_part_without_a_name():
    params = {name: ArraySource(value) for name, value in flatten(random_params(MODEL)).items()}
    with pytest.raises(UserError, match=r"layout 'llava' has no name for .* of the vision_head"):
        tensors_to_write(MODEL, params, "llava", None)
    del params["language_model/final_norm/scale"]
    with pytest.raises(UserError, match="lacks the parameter language_model/final_norm/scale"):
        tensors_to_write(MODEL, params, "native", None)
