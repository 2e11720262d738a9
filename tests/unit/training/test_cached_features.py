"""A step on kept features is the step on pixels, bit for bit, without the tower."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from metamorph_jax.config.schema_run import MeshConfig
from metamorph_jax.data.feature_store import FeatureStore, FeatureWriter
from metamorph_jax.errors import UserError
from metamorph_jax.metrics.flops import vision_flops
from metamorph_jax.models.encoder import TowerEncoder, encoder_fingerprint
from metamorph_jax.models.init import abstract_params, init_params, logical_axes
from metamorph_jax.models.metamorph import MetaMorph
from metamorph_jax.optim.selection import select
from metamorph_jax.sharding.mesh import create_mesh
from metamorph_jax.sharding.rules import batch_sharding, specs_for
from metamorph_jax.training.feature_cache import check_caches, check_encoder, images_per_call
from metamorph_jax.training.forward import make_forward
from metamorph_jax.training.step import make_gradients
from metamorph_jax.trees import flatten
from tests.tiny import tiny_batch, tiny_model, tiny_stage
from tests.tiny_run import tiny_config
from tests.tolerances import BFLOAT16, FLOAT32_REORDERED

DTYPES = ["float32", "bfloat16"]


def model_of(dtype):
    vision = dataclasses.replace(tiny_model().vision, scan_unroll=2, embed_dim=24)
    return tiny_model(dtype=dtype, vision=vision)


def keep(folder, model, tower, batches, images_per_call, mesh=None):
    """Writes the features of all images of the batches; returns the store."""
    encoder = TowerEncoder(model, tower, images_per_call, mesh)
    shape = (model.visual_tokens.num_tokens, model.visual_dim)
    pixels = np.concatenate([batch["images"].reshape(-1, 16, 16, 3) for batch in batches])
    with FeatureWriter(folder, encoder.fingerprint, model.dtype, shape) as out:
        for number, features in enumerate(encoder.stream(pixels)):
            out.add(number.to_bytes(32, "big"), features)
    return FeatureStore(folder)


def read(store, batches):
    """Returns the batches with features from the store instead of images."""
    number, cached = 0, []
    for batch in batches:
        rows, slots = batch["images"].shape[:2]
        keys = [(number + i).to_bytes(32, "big") for i in range(rows * slots)]
        features = np.stack([store.get(key) for key in keys])
        number += rows * slots
        rest = {name: array for name, array in batch.items() if name != "images"}
        cached.append(rest | {"features": features.reshape(rows, slots, *store.shape)})
    return cached


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_store_holds_what_the_model_encodes(tmp_path, dtype):
    model = model_of(dtype)
    params = init_params(model, jax.random.key(0))
    batch = tiny_batch(0)
    store = keep(tmp_path, model, params["vision_tower"], [batch], images_per_call=16)
    on_line = jax.jit(
        lambda params, images: MetaMorph(model).apply({"params": params}, images, method="encode")
    )(params, batch["images"])
    assert on_line.dtype == np.float32
    (cached,) = read(store, [batch])
    assert cached["features"].dtype == dtype
    np.testing.assert_array_equal(cached["features"].astype(np.float32), on_line)


@pytest.mark.parametrize(("dtype", "grad_accum_steps"), [("float32", 2), ("bfloat16", 1)])
def test_losses_and_gradients_are_those_of_pixels(tmp_path, dtype, grad_accum_steps):
    """In every bit, if the tower encodes as many images at once as a micro-batch has."""
    model, stage = model_of(dtype), tiny_stage(grad_accum_steps=grad_accum_steps)
    params = init_params(model, jax.random.key(0))
    selection = select(params, stage.trained)
    gradients = jax.jit(make_gradients(model, stage, selection))
    batch = tiny_batch(0)
    store = keep(tmp_path, model, params["vision_tower"], [batch], 16 // grad_accum_steps)
    (cached,) = read(store, [batch])
    expected = flatten(gradients(params, batch))
    for name, value in flatten(gradients(params, cached)).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_on_many_devices_are_those_of_pixels(tmp_path, dtype):
    """In every bit; bfloat16 only if the tower was partitioned, too, over any number of devices."""
    model, stage = model_of(dtype), tiny_stage()
    params, batch = init_params(model, jax.random.key(0)), tiny_batch(0)
    mesh = create_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    two = create_mesh(MeshConfig(data=-1, fsdp=1), jax.devices()[:2])
    (cached,) = read(keep(tmp_path, model, params["vision_tower"], [batch], 4, two), [batch])
    shardings = specs_for(logical_axes(model), abstract_params(model), mesh)
    forward, rows = make_forward(model, stage), batch_sharding(mesh)
    with jax.set_mesh(mesh):
        compute = jax.jit(forward, in_shardings=(shardings, rows))
        expected = compute(params, batch)
        for name, sums in compute(params, cached).items():
            np.testing.assert_array_equal(sums, expected[name], err_msg=name)
    features = jax.device_put(cached["features"], rows)
    assert features.sharding.spec == P(("data", "fsdp"))
    assert {shard.data.shape for shard in features.addressable_shards} == {(2, 2, 4, 24)}


def test_another_number_of_images_at_once_differs_by_rounding_alone(tmp_path):
    """Why the cache encodes as many images as a step does: see models/encoder.py."""
    for dtype, tolerance in (("float32", FLOAT32_REORDERED), ("bfloat16", BFLOAT16)):
        model = model_of(dtype)
        tower = init_params(model, jax.random.key(0))["vision_tower"]
        pixels = tiny_batch(0)["images"].reshape(16, 16, 16, 3)
        some = TowerEncoder(model, tower, 3).encode(pixels, 16)
        all_at_once = TowerEncoder(model, tower, 16).encode(pixels, 16)
        np.testing.assert_allclose(some, all_at_once, rtol=0, atol=tolerance)


def test_place_and_neighbours_do_not_matter():
    model = model_of("float32")
    encoder = TowerEncoder(model, init_params(model, jax.random.key(0))["vision_tower"], 16)
    pixels = tiny_batch(0)["images"].reshape(16, 16, 16, 3)
    features, order = encoder.encode(pixels, 16), np.random.default_rng(0).permutation(16)
    np.testing.assert_array_equal(encoder.encode(pixels[order], 16), features[order])
    np.testing.assert_array_equal(encoder.encode(pixels[3:5], 2), features[3:5])


def test_every_device_encodes_as_one_would():
    model = model_of("float32")
    tower = init_params(model, jax.random.key(0))["vision_tower"]
    mesh = create_mesh(MeshConfig(data=-1, fsdp=1), jax.devices()[:4])
    pixels = tiny_batch(0)["images"].reshape(16, 16, 16, 3)[:14]
    np.testing.assert_array_equal(
        TowerEncoder(model, tower, 3, mesh).encode(pixels, 14),
        TowerEncoder(model, tower, 3).encode(pixels, 14),
    )


def test_no_tower_is_computed():
    model = model_of("float32")
    params, batch = abstract_params(model), tiny_batch(0)
    rest = {name: array for name, array in batch.items() if name != "images"}
    cached = rest | {"features": np.zeros((8, 2, 4, 24), np.float32)}
    forward = jax.jit(make_forward(model, tiny_stage()))
    on_line, off_line = (forward.lower(params, rows).compile() for rows in (batch, cached))
    flops = [compiled.cost_analysis()["flops"] for compiled in (on_line, off_line)]
    assert flops[0] - flops[1] > 0.9 * 16 * vision_flops(model.vision)
    # The compiler drops arguments that nothing is computed from.
    sizes = [compiled.memory_analysis().argument_size_in_bytes for compiled in (on_line, off_line)]
    tower_bytes = sum(leaf.size * 4 for leaf in flatten(params["vision_tower"]).values())
    feature_bytes, pixel_bytes = cached["features"].nbytes, batch["images"].nbytes
    assert sizes[0] - sizes[1] == tower_bytes + pixel_bytes - feature_bytes


def test_a_cache_of_another_encoder_is_refused(tmp_path):
    model = model_of("float32")
    params = init_params(model, jax.random.key(0))
    store = keep(tmp_path, model, params["vision_tower"], [tiny_batch(0)], 16)
    check_encoder(store, params, model)
    for other in (init_params(model, jax.random.key(1)), _nudged(params)):
        with pytest.raises(UserError, match=r"made by another encoder .* cache_features again"):
            check_encoder(store, other, model)
    with pytest.raises(UserError, match="another encoder"):
        check_encoder(store, params, dataclasses.replace(model, dtype="bfloat16"))


def _nudged(params):
    """Returns the parameters with the last bit of one number of the tower changed."""
    table = params["vision_tower"]["position_embed"]["embedding"]
    table = table.at[0, 0].set(np.nextafter(table[0, 0], np.float32(np.inf)))
    tower = params["vision_tower"] | {"position_embed": {"embedding": table}}
    return params | {"vision_tower": tower}


def test_the_fingerprint_covers_what_decides_the_features_and_nothing_else():
    model = model_of("float32")
    tower = init_params(model, jax.random.key(0))["vision_tower"]
    mine = encoder_fingerprint(model, tower)
    vision, tokens = model.vision, model.visual_tokens
    same = [
        dataclasses.replace(model, vision=dataclasses.replace(vision, remat="full")),
        dataclasses.replace(model, vision=dataclasses.replace(vision, scan_unroll=1)),
        dataclasses.replace(model, vision=dataclasses.replace(vision, activation="gelu_tanh")),
        dataclasses.replace(model, connector="linear"),
    ]
    assert {encoder_fingerprint(config, tower) for config in same} == {mine}
    others = [
        dataclasses.replace(model, vision=dataclasses.replace(vision, image_size=18)),
        dataclasses.replace(model, vision=dataclasses.replace(vision, norm_eps=1e-5)),
        dataclasses.replace(model, vision=dataclasses.replace(vision, activation="gelu")),
        dataclasses.replace(model, visual_tokens=dataclasses.replace(tokens, normalize=False)),
        dataclasses.replace(model, visual_tokens=dataclasses.replace(tokens, num_tokens=1)),
        dataclasses.replace(model, dtype="bfloat16"),
    ]
    assert len({mine, *(encoder_fingerprint(config, tower) for config in others)}) == 7


def test_stages_to_come_are_checked_before_the_first_one_trains(tmp_path):
    base = tiny_config()
    params = init_params(base.model, jax.random.key(0))
    encoder = TowerEncoder(base.model, params["vision_tower"])
    with FeatureWriter(tmp_path / "mine", encoder.fingerprint, "float32", (4, 24)) as out:
        out.add(bytes(32), np.zeros((4, 24), np.float32))

    def stage(name, features, **changes):
        data = dataclasses.replace(base.stages[0].data, features=features)
        return dataclasses.replace(base.stages[0], name=name, data=data, **changes)

    mine, absent = str(tmp_path / "mine"), str(tmp_path / "absent")
    tower = stage("tower", "", trained=("/",))
    good = [stage("a", mine), stage("b", ""), stage("c", mine), tower, stage("d", absent)]
    check_caches(dataclasses.replace(base, stages=tuple(good)), 0, params)
    bad = dataclasses.replace(base, stages=(stage("a", mine), stage("b", absent)))
    with pytest.raises(UserError, match="absent: no feature cache is here"):
        check_caches(bad, 0, params)
    other = init_params(base.model, jax.random.key(1))
    with pytest.raises(UserError, match="another encoder"):
        check_caches(dataclasses.replace(base, stages=tuple(good)), 1, other)


@pytest.mark.parametrize(
    ("needs_pixels", "changes"),
    [
        (False, {"trained": ("connector", "language_model")}),
        (False, {"trained": ("/",), "excluded": ("vision_tower",)}),
        (True, {"trained": ("/",)}),
        (True, {"trained": ("vision_tower/blocks",)}),
        (True, {"trained": ("/",), "excluded": ("vision_tower/blocks",)}),
        (True, {"objective": "contrastive", "trained": ("contrastive",)}),
    ],
)
def test_stages_that_need_pixels_may_not_name_features(needs_pixels, changes):
    data = dataclasses.replace(tiny_stage().data, features="cache")
    stage = tiny_stage(data=data, **changes)
    assert stage.needs_pixels == needs_pixels
    found = [problem for problem in stage.problems() if "data.features='cache'" in problem]
    assert len(found) == needs_pixels


@pytest.mark.parametrize(
    ("mesh", "changes", "expected"),
    [
        ({}, {}, 8 * 2),
        ({}, {"grad_accum_steps": 2}, 4 * 2),
        ({"data": 2, "fsdp": 2, "tensor": 2}, {}, 2 * 2),
        ({"fsdp": 64}, {}, 2),
    ],
)
def test_images_per_call_are_those_of_a_step(mesh, changes, expected):
    config = dataclasses.replace(tiny_config(), mesh=MeshConfig(**({"fsdp": 1} | mesh)))
    assert images_per_call(config, tiny_stage(**changes)) == expected
