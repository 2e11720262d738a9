"""A template of ours as `chat_template.jinja`, for whoever reads exported folders.

The other way, a folder's jinja as a template of ours, is `data/templates/jinja.py`.
"""

import json
import string

from metamorph_jax.data.templates import Template
from metamorph_jax.data.templates.segments import BEGIN, BEGIN_IF_ADDED, END, split_markup
from metamorph_jax.data.tokenizer import Tokenizer
from metamorph_jax.errors import UserError

# Filled in by `string.Template`, whose $ jinja has no use for.
_CONTENT = """\
{%- macro said(content) -%}
{%- set all = namespace(text='') -%}
{%- if content is string -%}
{%- set all.text = content -%}
{%- else -%}
{%- for part in content -%}
{%- set all.text = all.text + ($image if part['type'] == 'image' else part['text']) -%}
{%- endfor -%}
{%- endif -%}
{{- $all -}}
{%- endmacro -%}
{{- $begin -}}
{%- for message in messages -%}
"""
_TURN = """\
{%- $word message['role'] == '$role' -%}
{{- $before -}}{{- said(message['content']) -}}{{- $after -}}
"""
_END = """\
{%- else -%}
{{- raise_exception('this template has no turn by ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- $header -}}
{%- endif -%}
"""


def to_jinja(template: Template, tokenizer: Tokenizer, image_token: str) -> str:
    """Returns the chat template, which takes contents that are texts or lists of parts.

    Args:
        template: how turns are written.
        tokenizer: spells the control tokens.
        image_token: what a picture is written as.

    Raises:
        UserError: The template does what jinja over single messages cannot.
    """
    _check(template)

    def spelled(markup: str) -> str:
        return json.dumps(_spell(markup, template, tokenizer))

    turns = [("user", *template.user), ("assistant", *template.answer[::2])]
    if template.system is not None:
        turns.append(("system", *template.system))
    text = string.Template(_CONTENT).substitute(
        image=json.dumps(image_token),
        all="all.text | trim" if template.strip else "all.text",
        begin=spelled(template.begin),
    )
    for number, (role, before, after) in enumerate(turns):
        text += string.Template(_TURN).substitute(
            word="elif" if number else "if",
            role=role,
            before=spelled(before),
            after=spelled(after),
        )
    return text + string.Template(_END).substitute(header=spelled(template.answer[0]))


def _check(template: Template) -> None:
    """Raises a UserError if turns are not simply written one after another."""
    header, lead, _ = template.answer
    usual = dict(questions="as_written", image_place="as_written", signal="", between="", end="")
    odd = [name for name, value in usual.items() if getattr(template, name) != value]
    odd += ["system_in_question"] if template.system_in_question else []
    odd += ["system_text"] if template.system_text is not None else []
    odd += ["answer"] if lead or not header else []
    if odd:
        raise UserError(
            f"template {template.name} cannot be written as chat_template.jinja, because of its "
            f"{', '.join(odd)}; 'metamorph_llama3', 'llama3' and 'jinja' can"
        )


def _spell(markup: str, template: Template, tokenizer: Tokenizer) -> str:
    """Returns a template's own text with control tokens as the tokenizer spells them."""
    names = {id_: name for name, id_ in tokenizer.names.items()}
    special = tokenizer.special
    generic = {
        BEGIN_IF_ADDED: special.begin_of_text if tokenizer.adds_begin else None,
        BEGIN: special.begin_of_text,
        END: special.end_of_text,
    }
    pieces = split_markup(markup, template.controls)
    return "".join(names.get(generic[p], "") if p in generic else p for _, p in pieces)
