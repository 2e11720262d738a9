"""The two stages of visual-predictive instruction tuning, with the paper's settings.

Source: metamorph.md 3.1. The published rates follow one rule, 6.93e-5 * sqrt(samples / 1536);
changing `global_batch_size` on the command line moves the rate along it.
"""


def adapter(files, *, num_rows, total_steps, image_root="data"):
    """Returns the stage that trains the projector and the two new token rows on captions."""
    return {
        "name": "adapter",
        "trained": ["connector"],
        "train_new_token_rows": True,
        "loss": {"visual_weight": 0.0},
        **_common(files, image_root, num_rows, total_steps, learning_rate=4.90e-5),
    }


def vpit(files, *, num_rows, total_steps, image_root="data"):
    """Returns the stage that trains everything but the tower on text and visual prediction."""
    return {
        "name": "vpit",
        "trained": ["connector", "language_model", "vision_head"],
        **_common(files, image_root, num_rows, total_steps, learning_rate=6.93e-5),
    }


def _common(files, image_root, num_rows, total_steps, learning_rate):
    return {
        "data": {
            "sources": [{"path": file, "image_root": image_root} for file in files],
            "max_seq_len": 4096,
            "max_images": 16,
            "num_workers": 8,
        },
        "optimizer": {"learning_rate": learning_rate, "reference_batch_size": num_rows},
        "frozen_dtype": "bfloat16",  # as published weights are
        "global_batch_size": num_rows,
        "total_steps": total_steps,
    }
