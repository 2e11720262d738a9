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
_JINJA = """\
{%- macro said(content, is_question) -%}
{%- set all = namespace(text='', words='', before='', images=0) -%}
{%- if content is string -%}
{%- set all.text = content -%}
{%- else -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}
{%- if all.images == 0 -%}
{%- set all.before = all.words -%}
{%- endif -%}
{%- set all.text = all.text + $image -%}
{%- set all.images = all.images + 1 -%}
{%- else -%}
{%- set all.text = all.text + part['text'] -%}
{%- set all.words = all.words + part['text'] -%}
{%- endif -%}
{%- endfor -%}
{%- if is_question and all.images == 1 and ($moves) -%}
{%- set all.text = $image + ('\\n' + (all.words | trim) if all.words | trim else '') -%}
{%- endif -%}
{%- endif -%}
{{- $all -}}
{%- endmacro -%}
{{- $begin -}}
{%- set system = namespace(text=$default, there=$default != '') -%}
{%- set dialogue = messages -%}
$own_system
{%- set opening = $before_system + system.text + $after_system if system.there else '' -%}
{%- if not $inside -%}
{{- opening -}}
{%- endif -%}
{%- for message in dialogue -%}
{%- if message['role'] == 'user' -%}
{%- if not loop.first -%}
{{- $between -}}
{%- endif -%}
{{- $before_user -}}
{%- if loop.first and $inside -%}
{{- opening -}}
{%- endif -%}
{{- said(message['content'], true) -}}{{- $after_user -}}
{%- elif message['role'] == 'assistant' -%}
{{- $header + $lead -}}{{- said(message['content'], false) -}}{{- $end -}}
{%- else -%}
{{- raise_exception('this template has no turn by ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- $header -}}
{%- endif -%}
"""
_OWN_SYSTEM = """\
{%- if messages and messages[0]['role'] == 'system' -%}
{%- set system.text = said(messages[0]['content'], false) -%}
{%- set system.there = true -%}
{%- set dialogue = messages[1:] -%}
{%- endif -%}
"""
_MOVES = {  # whether the one image of a question is put on a line of its own in front
    "as_written": "''",
    "front": "'always'",
    "front_if_behind": "all.before",
}


def to_jinja(template: Template, tokenizer: Tokenizer, image_token: str) -> str:
    """Returns the chat template, which takes contents that are texts or lists of parts.

    Args:
        template: how turns are written.
        tokenizer: spells the control tokens.
        image_token: what a picture is written as.

    Raises:
        UserError: The template does what jinja over single messages cannot.
    """
    if template.questions != "as_written" or template.signal:
        raise UserError(
            f"template {template.name} cannot be written as chat_template.jinja, because it "
            "drops questions or marks turns in plain text; export a model of another template"
        )

    def spelled(markup: str) -> str:
        return json.dumps(_spell(markup, template, tokenizer))

    before_system, after_system = template.system or ("", "")
    header, lead, end = template.answer
    return string.Template(_JINJA).substitute(
        image=json.dumps(image_token),
        moves=_MOVES[template.image_place] + (" | trim" if template.strip else ""),
        all="all.text | trim" if template.strip else "all.text",
        begin=spelled(template.begin),
        default=json.dumps(template.system_text or ""),
        own_system=_OWN_SYSTEM.rstrip() if template.system is not None else "",
        before_system=spelled(before_system),
        after_system=spelled(after_system),
        inside="true" if template.system_in_question else "false",
        between=spelled(template.between),
        before_user=spelled(template.user[0]),
        after_user=spelled(template.user[1]),
        header=spelled(header),
        lead=spelled(lead),
        end=spelled(end),
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
