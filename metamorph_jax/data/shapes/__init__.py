"""Shapes, a built-in synthetic world: coloured shapes with exact truth for six kinds of samples.

Start at `scene.py` (what there is to see) and `samples.py` (records of each kind). `source.py`
serves them like a file, `oracle.py` reads pictures back. docs/shapes.md says what it is for.
"""
