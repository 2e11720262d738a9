"""State, step, stages and loop: how a recipe becomes a trained checkpoint.

Read in this order: forward.py (losses of a batch), step.py (one update), state.py (what is carried
and saved), stages.py (what a stage needs), loop.py (the order of things).
"""
