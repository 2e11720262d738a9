"""Losses. Each returns sums and counts per row; `reduce.py` alone takes means.

    text.py      cross-entropy over answer tokens
    visual.py    predicted against true visual tokens: cosine, l1, softmax
    sigmoid.py   SigLIP's loss and the reconstruction, for pretraining a tower
    reduce.py    sums and counts -> one number

Nothing here knows a model: hidden states, predictions and tables come in as arrays.
"""
