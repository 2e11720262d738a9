"""Weights of Hugging Face folders, in and out; `python -m metamorph_jax.convert` is the front door.

What tensors are called, and what becomes of them:
    layouts.py      how whole checkpoints spell the names of their parts
    table.py        a row of a mapping table; tables: llama.py, siglip.py, clip.py, parts.py (all)
    vocabulary.py   rows for new tokens
    metamorph.py    a whole checkpoint in memory, for small models
What a model is:
    configs.py      config.json <-> our configurations; decoder_configs.py, tower_configs.py and
                    config_values.py are behind it
    inference.py    the model that folders are, and whether a recipe's is that one
In:
    tensor_files.py safetensors files, one tensor at a time, believed only after checks
    folder.py       a folder of weights, opened; inspecting.py says what it is
    param_source.py one parameter of ours, read in parts; copying.py transposes quickly
    importing.py    folders -> sources of all parameters; to_checkpoint.py writes them
Out:
    exporting.py    parameters -> tensors, each made when tensor_writer.py writes it
    from_checkpoint.py     a checkpoint -> a folder
    export_llava.py        the files of an exported LLaVA beside its tensors
    export_metamorph.py    those of a MetaMorph; metamorph_config.py is its config.json
    chat_template.py, generation_config.py, image_processors.py, model_card.py: for both
    remote/                MetaMorph's classes in PyTorch; auto.py makes transformers know them

Tensors are numpy arrays. Nothing but `remote/` and `auto.py` imports torch.
"""
