"""MetaMorph as PyTorch classes of Hugging Face `transformers`.

    configuration_metamorph.py    the numbers of config.json
    modeling_metamorph.py         the model
    vision_metamorph.py           its tower
    generation_metamorph.py       answers of text and pictures
    processing_metamorph.py       conversations and pictures -> tensors
    prompts_metamorph.py          conversations -> prompts in which texts are only texts
    pictures_metamorph.py         pictures -> pixels

The files are copied into exported folders as they are, where `transformers` runs them as remote
code. So they import torch, transformers, numpy, Pillow and each other, never this package, and
they are the only ones here with relative imports. `hub/auto.py` makes them known without a copy.
"""
