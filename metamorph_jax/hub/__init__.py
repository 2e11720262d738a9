"""Hugging Face names, files and shapes, both ways.

    table.py        a row of a mapping table, and the two functions that walk it
    configs.py      config.json <-> our configurations; decoder_configs.py, tower_configs.py and
                    config_values.py are behind it
    llama.py        decoder
    siglip.py       SigLIP tower
    clip.py         CLIP tower
    parts.py        the tables of all parts of a model
    layouts.py      how whole checkpoints spell the names of their parts
    metamorph.py    a whole checkpoint in memory
    vocabulary.py   rows for new tokens

    export_metamorph.py    the files of an exported MetaMorph beside tensors and tokenizer
    metamorph_config.py    its config.json, both ways
    chat_template.py       a template of ours as jinja
    remote/                its classes in PyTorch, for transformers
    auto.py                the Auto classes of transformers know them

Tensors are numpy arrays in dicts. Nothing but `remote/` and `auto.py` imports torch, and nothing
builds a model of ours.
"""
