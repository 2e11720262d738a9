import pytest

from metamorph_jax.hub.layouts import LAYOUTS, OwnName, find_layout, is_dead, to_own, to_theirs
from metamorph_jax.hub.parts import part_tables
from tests.tiny import tiny_model

WHOLE = ("composite", "llava", "native")


def own_names(**changes):
    return [
        OwnName(part, name)
        for part, table in part_tables(tiny_model(**changes)).items()
        for name in table.names()
    ]


@pytest.mark.parametrize("layout", WHOLE)
@pytest.mark.parametrize("connector", ["linear", "mlp2x_gelu", "mlp3x_gelu"])
def test_there_and_back(layout, connector):
    for own in own_names(connector=connector):
        name = to_theirs(layout, own)
        if layout == "llava" and own.part == "vision_head":
            assert name is None  # a LLaVA paints nothing
        else:
            assert to_own(layout, name) == own


@pytest.mark.parametrize("layout", WHOLE)
def test_names_tell_the_layout(layout):
    names = [name for own in own_names() if (name := to_theirs(layout, own))]
    assert find_layout(names) == layout
    assert find_layout([*names, "model.vision_proj.weight"]) == layout


def test_parts_alone():
    decoder = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"]
    assert find_layout(decoder) == "decoder"
    tower = ["vision_model.embeddings.patch_embedding.weight", "vision_model.head.probe"]
    assert find_layout(tower) == "tower"
    assert find_layout([*tower, "text_model.embeddings.token_embedding.weight"]) == "tower"
    assert find_layout([name.removeprefix("vision_model.") for name in tower]) == "tower"
    assert find_layout([*decoder, "transformer.h.0.attn.weight"]) is None
    assert find_layout([]) is None


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("composite", "model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"),
        ("llava", "vision_tower.encoder.layers.0.mlp.fc1.weight"),
        ("native", "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"),
        ("tower", "encoder.layers.0.mlp.fc1.weight"),
    ],
)
def test_other_spellings_are_read(layout, name):
    assert to_own(layout, name) == OwnName("vision_tower", "encoder.layers.0.mlp.fc1.weight")


def test_unknown_and_dead():
    assert to_own("llava", "model.norm.weight") is None
    assert is_dead("model.vision_proj.weight") and not is_dead("model.vision_projector.weight")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_prefix_stands_twice(layout):
    theirs = [prefix.theirs for prefix in LAYOUTS[layout]]
    assert len(set(theirs)) == len(theirs)
