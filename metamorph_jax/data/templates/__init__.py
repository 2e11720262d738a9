"""Templates: how conversations are written as tokens.

    table      every template by name
    template   a chat format as data -> segments
    jinja      a tokenizer folder's own chat template -> segments
    segments   control tokens, words and image slots
    rendering  segments -> Example
    example    the tokens of one conversation

docs/templates.md shows each template and lists where ours differs from the published code
(`reference/`). `packing.py` is next on the road: which examples share a row.
"""

from metamorph_jax.data.templates.example import Example, Mixture
from metamorph_jax.data.templates.rendering import (
    AnyTemplate,
    check_template,
    render_example,
    render_prompt,
    stop_ids,
)
from metamorph_jax.data.templates.table import TEMPLATES, choose_template
from metamorph_jax.data.templates.template import Template

__all__ = [
    "TEMPLATES",
    "AnyTemplate",
    "Example",
    "Mixture",
    "Template",
    "check_template",
    "choose_template",
    "render_example",
    "render_prompt",
    "stop_ids",
]
