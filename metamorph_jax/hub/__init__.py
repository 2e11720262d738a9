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

Tensors are numpy arrays in dicts; nothing here imports torch or builds a model.
"""
