"""Hugging Face names, files and shapes, both ways.

    table.py        a row of a mapping table, and the two functions that walk it
    llama.py        decoder
    siglip.py       SigLIP tower
    clip.py         CLIP tower
    metamorph.py    the composition, as the released checkpoints name it
    vocabulary.py   rows for new tokens

Tensors are numpy arrays in dicts; nothing here imports torch or builds a model.
"""
