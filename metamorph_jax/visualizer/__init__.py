"""Visual tokens -> pictures: a diffusion U-Net conditioned on them, in PyTorch with diffusers.

    schema.py               the dataclasses; their fields are the recipe
    projector.py            visual tokens -> conditioning tokens
    latents.py              pictures <-> what the diffusion works on
    parts.py                what comes from a Stable Diffusion folder
    model.py                projector + U-Net
    diffusion.py            noise, target and loss
    schedule.py             learning-rate multipliers
    dataset.py              files of visual tokens
    pictures.py             image files of any size -> squares
    encoder.py              an exported MetaMorph's tower, for pictures without features
    latent_cache.py         latents of all pictures, kept on disk
    sources.py              what the command line names, opened
    order.py, feed.py       step -> rows of the batch, with their noise
    quarantine.py           pictures that cannot be used
    checkpoint.py           folders of safetensors that survive a kill (manifest.py)
    trainer.py, loop.py     one update; the order of things around it
    settings.py             how to paint; the flags of the painting commands
    sampling.py, painter.py visual tokens -> pictures, by diffusers' own pipeline
    picture_files.py        -> PNG files, and sheets that show them (sheet.py)
    asking.py               a model and a prompt -> visual tokens
    reconstruction.py       originals beside what is painted from real and from predicted tokens
    train.py, paint.py, reconstruct.py    the commands

Nothing here imports jax; the JAX side reaches this room through files and processes only.
"""
