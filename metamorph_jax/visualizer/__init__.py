"""Visual tokens -> pictures: a diffusion U-Net conditioned on them, in PyTorch with diffusers.

    schema.py               the dataclasses; their fields are the recipe
    projector.py            visual tokens -> conditioning tokens
    latents.py              pictures <-> what the diffusion works on
    model.py                projector + U-Net
    diffusion.py            noise, target and loss; sampling through diffusers' schedulers
    schedule.py             learning-rate multipliers
    dataset.py              features file + image folder -> batches
    checkpoint.py           folders of safetensors that survive a kill
    trainer.py, loop.py     one update; the order of things around it
    painter.py, sheet.py    visual tokens -> PNG files, and all of them on one sheet
    train.py, paint.py      the commands

Nothing here imports jax; the JAX side reaches this room through files and processes only.
"""
