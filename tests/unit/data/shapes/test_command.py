"""The command that writes the tokenizer, and the recipe that names it."""

from pathlib import Path

from metamorph_jax.config.loading import load_recipe
from metamorph_jax.data.shapes.__main__ import main
from metamorph_jax.data.shapes.samples import KINDS
from metamorph_jax.data.shapes.source import parse_path
from metamorph_jax.data.tokenizer import load_tokenizer

CONFIG = Path(__file__).resolve().parents[4] / "configs" / "shapes.py"


def test_the_recipe_shows_all_kinds_and_knows_every_word(tmp_path):
    main([f"--out={tmp_path}"])
    config = load_recipe(f"{CONFIG}:{tmp_path}")
    tokenizer = load_tokenizer(config.tokenizer.path)
    assert tokenizer.vocab_size <= config.model.llm.vocab_size
    words = tokenizer.encode_text("Generate an image of three small purple triangles.")
    assert len(words) == 9  # a word is an id
    paths = [source.path for stage in config.stages for source in stage.data.sources]
    assert {parse_path(path).kind for path in paths} == set(KINDS)
    assert {parse_path(path).split for path in paths} == {"train"}
    vpit = config.stages[-1]
    assert [source.kind for source in vpit.data.sources] == [k for k in KINDS if k != "captions"]
