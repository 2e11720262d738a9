"""Checkpoints that survive kills, full disks and flipped bits, and fit any mesh.

    store.py      save in the background, restore the newest one that verifies, fall back
    selection.py  which checkpoint to read; what happens to damaged ones
    streaming.py  checkpoints larger than memory, in parts (import and export)
    manifest.py   the hash of every file: how damage is found
    metadata.py   what a checkpoint says about its run (step, stage, seed, recipe, versions)
    naming.py     state <-> arrays with stable names, and the comparison of two such sets
    folders.py    names of the folders on disk, cleaning, setting aside
    arrays.py     the only file that talks to Orbax
    ahead.py      the next piece is made while this one is used

Layout of one checkpoint, complete whenever its name has no suffix:

    00000123/state/         arrays, written by Orbax
    00000123/meta.json      CheckpointMeta
    00000123/manifest.json  size and sha256 of every file, shape and dtype of every array

Not here: when to save (training/), Hugging Face files (hub/). Start with store.py.
"""
