"""flax.linen modules; the only room that imports flax.linen.

    layers.py         Linear, Embed, RMSNorm, LayerNorm with logical axes
    stack.py          scan and remat over equal blocks
    llama.py          the decoder
    cache.py          keys and values of decoded positions
    vit.py            SigLIP and CLIP towers
    connector.py      visual tokens -> decoder width
    vision_head.py    decoder width -> visual tokens
    contrastive.py    heads for pretraining a tower of one's own
    metamorph.py      the composition; start reading here
    init.py           parameters, their shapes and their logical axes

Modules hold no state: parameters come in as a plain nested dict, everything else is an argument.
"""
