"""A finished run as one self-contained HTML page and a summary in JSON.

Start at `__main__.py`. Files named `digits*.py` know the demo's data, `shapes*.py` the built-in
world; all others work for any run.
"""
