"""Runs under any release of transformers, without this package: `load.py FOLDER` of `run.py`.

Every export must load with all of its tensors and nothing else, and answer as ours did.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from PIL import Image


def load(kind: type, folder: Path, **options: bool) -> torch.nn.Module:
    """Returns a model after asserting that all tensors are those of the folder."""
    model, info = kind.from_pretrained(folder, output_loading_info=True, **options)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[key], f"{folder}: {key} {info[key]}"
    return model.eval()


def answer(folder: Path, case: dict, picture: Image.Image) -> list[int]:
    """Returns the new ids of one prompt."""
    trust = {"trust_remote_code": True} if case["kind"] == "metamorph" else {}
    auto = transformers.AutoModelForImageTextToText
    model = load(auto, folder, **trust)
    processor = transformers.AutoProcessor.from_pretrained(folder, **trust)
    content = [{"type": "image"}] * case["num_images"]
    content += [{"type": "text", "text": case["text"]}]
    messages = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    images = [picture] * case["num_images"] or None
    inputs = processor(text=prompt, images=images, add_special_tokens=False, return_tensors="pt")
    generate = model.generate_multimodal if trust else model.generate
    with torch.no_grad():
        found = generate(**inputs, max_new_tokens=len(case["steps"]))
    sequences = found.sequences if trust else found
    ids = sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return [-1 if id_ == case["placeholder"] else id_ for id_ in ids]


def main(root: Path) -> None:
    """Answers all cases of `cases.json`."""
    picture = Image.open(root / "picture.png")
    cases = json.loads((root / "cases.json").read_text())
    for case in cases:
        steps = answer(root / case["folder"], case, picture)
        assert steps == case["steps"], f"{case['folder']}: {steps}, ours {case['steps']}"
    print(
        f"transformers {transformers.__version__}, torch {torch.__version__}: {len(cases)} answers "
        "equal, no key missing or surplus"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
