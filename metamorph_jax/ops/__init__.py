"""Pure functions on arrays: no parameters, no configuration objects of a model, no randomness.

    rope.py            rotary position embedding, with linear and llama3 scaling
    masks.py           which position may look at which
    attention.py       softmax attention with grouped heads
    activations.py     what MLPs bend their inner values with
    normalize.py       L2 normalisation, pixel normalisation
    resample.py        grids of tokens: bilinear reduction, cells of pixels
    gather.py          visual tokens by index
    cross_entropy.py   cross-entropy that never holds all logits

Parameters and their names live in `models/`, means and weights of losses in `objectives/`.
"""
