"""Recipes: Python files that return a ConfigDict, read into frozen dataclasses.

    schema_model.py, schema_run.py   the dataclasses; their fields are the schema
    presets.py                       published model sizes
    build.py                         ConfigDict -> dataclass, all mistakes at once
    overrides.py                     --config.a.b=value
    loading.py                       file -> RunConfig, and back to text

Nothing here imports jax, so that `--help` and mistakes answer at once.
"""

from metamorph_jax.config.loading import load_recipe as load_recipe
from metamorph_jax.config.loading import to_text as to_text
from metamorph_jax.config.schema_model import ModelConfig as ModelConfig
from metamorph_jax.config.schema_run import RunConfig as RunConfig
