"""LLaVA-1.5's two stages, which have templates of their own and are therefore two runs.

Source: llava.md 3: projector on 558,128 captions, 256 a step at 1e-3, square images; then
projector and decoder on 665,298 conversations, 128 a step at 2e-5, padded images. Texts have at
most 2,048 tokens and an image 576.

Packed rows hold about as many samples: four captions of some 600 tokens, or two conversations of
some 1,000 to 1,300. Unpacked, a row is a sample.
"""

from ml_collections import ConfigDict

from configs.pieces.hardware import device, put_on, words
from configs.pieces.models import llava15

STAGES = ("instruct", "projector")
NUM_ROWS = {
    "packed": {"projector": 64, "instruct": 64},
    "unpacked": {"projector": 256, "instruct": 128},
}
TOTAL_STEPS = {"projector": 2181, "instruct": 5198}  # one epoch of samples
ROW_TOKENS = 2688  # 2,048 + 575, up to a multiple of 128
DATA = {"projector": "data/blip_laion_cc_sbu_558k.json", "instruct": "data/llava_v1_5_mix665k.json"}

TPU_POD = device({"fsdp": 64}, 2, attention="splash", remat="attention")
HARDWARE = {
    "h100": device({"fsdp": 8}, 4),
    "h200": device({"fsdp": 8}, 8),
    **dict.fromkeys(("v4", "v5e", "v5p", "v6e"), TPU_POD),
}


def make_config(name, arg, *, preset, decoder):
    """Returns the recipe of one stage.

    Args:
        name: of the recipe.
        arg: words for hardware, stage and rows, see `hardware.words`.
        preset: of the decoder.
        decoder: folder of its weights and tokenizer.
    """
    place, stage, variant = words(
        arg, f"configs/{name}.py", hardware=HARDWARE, stage=STAGES, rows=NUM_ROWS
    )
    config = ConfigDict()
    config.name = f"{name}_{stage}_{variant}"
    config.tokenizer = {"path": decoder, "template": "plain" if stage == "projector" else "v1"}
    config.model = llava15(preset, decoder)
    if stage == "instruct":
        config.model["init_from"] = [f"runs/{name}_projector_{variant}"]
    config.stages = [_stage(stage, variant)]
    put_on(config, HARDWARE[place])
    return config


def _stage(name, variant):
    is_first = name == "projector"
    return {
        "name": name,
        "trained": ["connector"] if is_first else ["connector", "language_model"],
        "loss": {"visual_weight": 0.0},
        # The projector's run hands its decoder on: nothing of it is rounded.
        "frozen_dtype": None if is_first else "bfloat16",
        "data": {
            "sources": [{"path": DATA[name], "image_root": "data"}],
            "max_seq_len": ROW_TOKENS,
            "max_images": 4 if variant == "packed" else 1,
            "packing": variant == "packed",
            "image_geometry": "square" if is_first else "pad",
            "num_workers": 8,
        },
        "optimizer": {"learning_rate": 1e-3 if is_first else 2e-5},
        "global_batch_size": NUM_ROWS[variant][name],
        "total_steps": TOTAL_STEPS[name],
    }
