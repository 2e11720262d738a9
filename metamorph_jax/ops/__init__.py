"""Pure functions on arrays: no parameters, no configuration objects of a model, no randomness.

    rope.py            rotary position embedding, with linear and llama3 scaling
    masks.py           which position may look at which
    attention.py       softmax attention with grouped heads: the reference, and in blocks
    attention_scan.py  the same for long rows, in memory that is linear in their length
    attention_kernels.py   fused kernels of jax for TPU and GPU
    backends.py        which of them computes a training step, and why
    activations.py     what MLPs bend their inner values with
    normalize.py       L2 normalisation, pixel normalisation
    resample.py        grids of tokens: bilinear reduction, cells of pixels
    gather.py          visual tokens by index
    cross_entropy.py   cross-entropy that never holds all logits

Parameters and their names live in `models/`, means and weights of losses in `objectives/`.
"""
