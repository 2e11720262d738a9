"""Devices and what lies where on them.

    mesh.py    the mesh with axes data, fsdp, tensor
    rules.py   logical axis names -> mesh axes, for parameters and for activations

Arrays carry only logical names ("embed", "heads"); this room alone knows the mesh.
"""
