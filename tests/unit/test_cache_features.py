"""Features for training, by content; and the file that the visualizer reads."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from metamorph_jax.cache_features import image_paths, main
from metamorph_jax.config.loading import load_recipe, to_dict
from metamorph_jax.data.feature_loader import feature_key
from metamorph_jax.data.feature_store import FeatureStore
from metamorph_jax.data.images import ImageLoader
from metamorph_jax.data.media import Crop, VideoFrame
from metamorph_jax.decoding.features import Encoder
from metamorph_jax.errors import UserError
from metamorph_jax.metrics.phases import read_phases
from metamorph_jax.models.encoder import TowerEncoder
from metamorph_jax.sharding.mesh import create_mesh
from metamorph_jax.training.feature_cache import check_encoder, initial_tower
from metamorph_jax.training.initial import create_params
from metamorph_jax.trees import flatten
from tests.tiny_run import tiny_config, write_tiny_run


def write_records(path, images):
    said = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "yes"}]
    lines = [json.dumps({"image": image, "conversations": said}) + "\n" for image in images]
    path.write_text("".join(lines))


def test_file_holds_each_image_once_in_order(tmp_path, capsys):
    run, data = tmp_path / "run", tmp_path / "data"
    write_tiny_run(run, tiny_config())
    data.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    for index in range(3):
        Image.fromarray(pixels[index]).save(data / f"{index}.png")
    write_records(data / "a.jsonl", ["2.png", "0.png", "2.png"])
    write_records(data / "b.jsonl", ["1.png", "0.png"])
    out = tmp_path / "new" / "features.safetensors"
    arguments = [
        "--checkpoint",
        run / "checkpoints",
        "--jsonl",
        f"{data / 'a.jsonl'},{data / 'b.jsonl'}",
    ]
    arguments += ["--image_root", data, "--out", out, "--batch_size", 2]
    assert main([str(argument) for argument in arguments]) == 0
    encoder = Encoder.load(run, batch_size=2)
    with safe_open(out, framework="numpy") as file:
        features, metadata = file.get_tensor("features"), file.metadata()
    assert json.loads(metadata["images"]) == ["2.png", "0.png", "1.png"]
    assert metadata["encoder_fingerprint"] == encoder.fingerprint
    assert metadata["view"] == "squash"
    np.testing.assert_array_equal(features, encoder.encode(pixels[[2, 0, 1]], 3))
    assert features.shape == (3, 4, 24)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert list(read_phases(run)) == ["cache_features"]
    assert "3 images, 4 tokens of 24" in capsys.readouterr().out


def test_files_without_images_are_refused(tmp_path):
    said = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    (tmp_path / "text.jsonl").write_text(json.dumps({"conversations": said}) + "\n")
    with pytest.raises(UserError, match="no record names an image file"):
        image_paths([str(tmp_path / "text.jsonl")])


def write_recipe(folder, sources, **data):
    """Writes a recipe of the tiny run with one stage, in folder/recipe.py; returns its path."""
    recipe = to_dict(tiny_config()) | {"mesh": {"data": 1, "fsdp": 1, "tensor": 1}}
    stage = recipe["stages"][0]
    stage |= {"global_batch_size": 2, "total_steps": 3}
    stage["data"] = {"sources": sources, "max_images": 2, "max_seq_len": 64} | data
    (folder / "recipe.py").write_text(f"def get_config():\n    return {recipe!r}\n")
    return folder / "recipe.py"


def write_images(folder, count):
    """Writes images of noise; returns their pixels."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    for index in range(count):
        Image.fromarray(pixels[index]).save(folder / f"{index}.png")
    return pixels


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture
def recipe(tmp_path):
    """A recipe whose two sources show three images, a crop, a frame of a folder and a bad file."""
    write_images(tmp_path / "images", 4)
    write_images(tmp_path / "images" / "video", 2)
    (tmp_path / "images" / "3.png").write_bytes(b"no image")
    write_records(tmp_path / "a.jsonl", ["2.png", "0.png", "2.png", "3.png", "absent.png"])
    said = [{"from": "human", "value": "<image>Where?"}, {"from": "gpt", "value": "Here."}]
    thinking = {"image": "1.png", "boxes": [{"box": [0, 0, 16, 16]}], "conversations": said}
    (tmp_path / "b.jsonl").write_text(json.dumps(thinking) + "\n")
    (tmp_path / "c.jsonl").write_text(
        json.dumps({"video": "video", "conversations": said}).replace("<image>", "<video>") + "\n"
    )
    root = str(tmp_path / "images")
    sources = [
        {"path": str(tmp_path / "a.jsonl"), "image_root": root},
        {"path": str(tmp_path / "b.jsonl"), "image_root": root, "kind": "visual_thinking"},
        {"path": str(tmp_path / "c.jsonl"), "image_root": root, "kind": "video_qa"},
    ]
    return write_recipe(tmp_path, sources, features=str(tmp_path / "cache"))


def test_every_image_of_a_recipe_is_kept_once(recipe, tmp_path, capsys):
    assert run("--config", recipe) == 0
    store = FeatureStore(tmp_path / "cache")
    loader = ImageLoader(str(tmp_path / "images"), 32)
    crop = Crop("1.png", (0.0, 0.0, 16.0, 16.0))
    medias = ["0.png", "1.png", "2.png", crop, VideoFrame("video", 0.0), VideoFrame("video", 1.0)]
    keys = [feature_key(media, loader, "test") for media in medias]
    assert store.keys() == set(keys)
    config = load_recipe(str(recipe), {})
    encoder = TowerEncoder(config.model, initial_tower(config), 2 * 2)  # rows x slots of a step
    assert store.fingerprint == encoder.fingerprint
    features = encoder.encode(loader.load_all(medias, "test"), len(medias))
    for key, expected in zip(keys, features, strict=True):
        np.testing.assert_array_equal(store.get(key), expected)
    said = capsys.readouterr().out
    assert "6 images, 6 of them new, from 7 records of stage vpit; 2 bad records" in said
    assert "a.jsonl:4: image '3.png' cannot be decoded" in said
    assert "a.jsonl:5: image 'absent.png' cannot be read" in said


def test_a_second_run_computes_only_what_is_missing(recipe, tmp_path, capsys):
    run("--config", recipe)
    before = {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    write_images(tmp_path / "more", 9)
    (tmp_path / "more" / "8.png").rename(tmp_path / "images" / "absent.png")
    capsys.readouterr()
    assert run("--config", recipe) == 0
    said = capsys.readouterr().out
    assert "7 images, 1 of them new, from 7 records of stage vpit; 1 bad records" in said
    after = {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    assert len(after) == 2 and before.items() <= after.items()


def test_the_tower_of_a_run_is_another_encoder(recipe, tmp_path):
    config = load_recipe(str(recipe), {})
    params = write_tiny_run(tmp_path / "run", config, seed=1)
    assert run("--config", recipe, "--checkpoint", tmp_path / "run", "--out", tmp_path / "b") == 0
    check_encoder(FeatureStore(tmp_path / "b"), params, config.model)
    with pytest.raises(UserError, match="made by another encoder"):
        run("--config", recipe, "--out", tmp_path / "b")


def test_a_new_run_begins_with_the_same_tower(recipe):
    config = load_recipe(str(recipe), {})
    mesh = create_mesh(config.mesh, jax.devices()[:1])
    params = create_params(config.model, config.seed, mesh)
    ours, theirs = flatten(initial_tower(config)), flatten(params["vision_tower"])
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)


def test_recipes_without_a_place_for_features_are_told(recipe, tmp_path):
    flag = "--config.stages.vpit.{}={}".format
    with pytest.raises(UserError, match=r"data\.features; name one with --out"):
        run("--config", recipe, flag("data.features", "''"))
    with pytest.raises(UserError, match="every stage is contrastive or trains the vision tower"):
        run("--config", recipe, flag("data.features", "''"), flag("trained", "['/']"))
    with pytest.raises(UserError, match=r"stages\.vpit: data\.features=.* leave it empty"):
        run("--config", recipe, flag("trained", "['/']"))


@pytest.mark.parametrize("arguments", [[], ["--jsonl=a", "--config=b"], ["--jsonl=a"]])
def test_one_of_two_uses_is_chosen(arguments):
    with pytest.raises(SystemExit):
        main(arguments)
