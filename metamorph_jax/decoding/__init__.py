"""Prompts in, answers of text and pictures out.

    generator.py   checkpoint -> Generator -> answers; start reading here
    prompts.py     what is asked; prompts of different lengths -> a batch of few shapes
    loop.py        prefill and the mixed text/visual loop, one compiled program
    sampling.py    logits -> next token: greedy, temperature, top-p
    answers.py     emitted steps -> text and visual tokens
    features.py    images -> visual tokens, for files and reports

The cache itself is in `models/cache.py`. Nothing here knows about training.
"""
