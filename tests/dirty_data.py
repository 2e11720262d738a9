"""A user's folder with about twenty faults among good records, and the list of what was planted."""

import io
import json
import shutil
from pathlib import Path

from PIL import Image

from metamorph_jax.data.shapes.samples import make_sample
from tests.golden_data import GOLDEN

SCRIPT = '<script>alert("data")</script><img src=x onerror=alert(1)>'
RECIPE = '''
"""One stage on two files of shapes."""

from metamorph_jax.config.schema_model import LlamaConfig, VisionConfig


def get_config(folder):
    def source(name, kind):
        return {"path": f"{folder}/{name}.jsonl", "kind": kind, "image_root": f"{folder}/images"}

    return {
        "name": "shapes_to_lint",
        "tokenizer": {"path": f"{folder}/tokenizer"},
        "model": {
            "llm": LlamaConfig(
                vocab_size=320, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
                embed_dim=16, mlp_dim=32, max_seq_len=768,
            ),
            "vision": VisionConfig(
                image_size=32, patch_size=8, num_layers=1, num_heads=2, embed_dim=8, mlp_dim=16
            ),
            "visual_tokens": {"num_tokens": 16},
        },
        "stages": [
            {
                "name": "vpit",
                "trained": ["connector"],
                "data": {
                    "sources": [source("talk", "conversation"), source("clips", "video_qa")],
                    "max_seq_len": 768,
                    "max_images": 8,
                },
                "optimizer": {"learning_rate": 1e-3},
                "global_batch_size": 2,
                "total_steps": 40,
            }
        ],
    }
'''


class _Lines:
    """The lines of a file, and on which of them a fault was planted."""

    def __init__(self):
        self.lines: list[bytes] = []
        self.planted: dict[int, str] = {}

    def add(self, fields: dict | bytes, fault: str | None = None) -> None:
        data = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        self.lines.append(data)
        if fault:
            self.planted[len(self.lines)] = fault

    def write(self, path: Path) -> set[tuple[str, str]]:
        """Writes the file; returns (FILE:LINE, reason) of every planted fault."""
        path.write_bytes(b"\n".join(self.lines) + b"\n")
        return {(f"{path}:{line}", reason) for line, reason in self.planted.items()}


def talk(question: str, answer: str, image: str | list[str] | None = None, **more) -> dict:
    """Returns one record."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **({"image": image} if image else {}), **more}


def make_data(folder: Path, is_dirty: bool) -> set[tuple[str, str]]:
    """Writes data, a tokenizer and a recipe into `folder`; returns what was planted, and where."""
    images = folder / "images"
    (folder / "tokenizer").mkdir(parents=True)
    shutil.copyfile(GOLDEN / "tokenizer.json", folder / "tokenizer" / "tokenizer.json")
    (folder / "recipe.py").write_text(RECIPE)
    lines, clips = _Lines(), _Lines()
    for index in range(12):
        for kind in ("image_qa", "text_to_image", "image_to_image"):
            lines.add(_good(images, kind, index))
        clips.add(_good_clip(images, index))
    if is_dirty:
        _plant_records(lines)
        _plant_media(folder, images, lines)
        _plant_signs(images, lines)
        clips.add(talk("What moves?", "Nothing.", video="nowhere"), "missing_media")
        clips.add(talk("<video> or <video>?", "One.", video="clip0.gif"), "tag_mismatch")
    lines.add(_good(images, "image_qa", 12))
    return lines.write(folder / "talk.jsonl") | clips.write(folder / "clips.jsonl")


def _good(images: Path, kind: str, index: int) -> dict:
    fields = make_sample(kind, "train", index)
    names = []
    for number, data in enumerate(fields["image"]):
        names.append(f"{kind}/{index}_{number}.png")
        (images / kind).mkdir(parents=True, exist_ok=True)
        (images / names[-1]).write_bytes(data)
    return {"id": f"{kind}-{index}", "image": names, "conversations": fields["conversations"]}


def _good_clip(images: Path, index: int) -> dict:
    fields = make_sample("video_qa", "train", index)
    name = f"clip{index}.gif"
    first, *rest = [Image.open(io.BytesIO(data)) for data in fields["video"]]
    first.save(images / name, save_all=True, append_images=rest, duration=1000)
    return {"id": index, "video": name, "conversations": fields["conversations"]}


def _plant_records(lines: _Lines) -> None:
    """Faults of the file and of the conversation."""
    lines.add(json.dumps(talk("Half a", "line")).encode()[:-9], "malformed_record")
    lines.add(b'{"conversations": "\xff\xfe"}', "malformed_record")
    lines.add({"conversations": [{"from": "human"}]}, "malformed_record")
    lines.add(talk("<image> and <image>?", "Two.", "image_qa/0_0.png"), "tag_mismatch")
    lines.add(talk("No tag.", "None.", "image_qa/0_0.png"), "tag_mismatch")
    robot = [{"from": "robot", "value": "Hello."}, {"from": "gpt", "value": "Hello."}]
    lines.add({"conversations": robot}, "wrong_conversation")
    twice = [{"from": "human", "value": "One."}, {"from": "human", "value": "Two."}]
    lines.add({"conversations": twice}, "wrong_conversation")
    lines.add({"conversations": twice[:1]}, "nothing_to_learn")


def _plant_media(folder: Path, images: Path, lines: _Lines) -> None:
    """Faults of image files."""
    good = (images / "image_qa" / "0_0.png").read_bytes()
    (images / "cut.png").write_bytes(good[:70])
    (images / "words.png").write_text("not a picture")
    Image.new("1", (9000, 9000)).save(images / "huge.png")
    Image.new("RGB", (1, 1)).save(images / "pixel.png")
    (images / "copy.png").write_bytes(good)
    (folder / "outside.png").write_bytes(good)
    for name, fault in {
        "gone.png": "missing_media",
        "cut.png": "unreadable_media",
        "words.png": "unreadable_media",
        "huge.png": "too_large_media",
        "../outside.png": "forbidden_path",
        "https://example.com/cat.png": "forbidden_path",
        "pixel.png": "tiny_image",
        "copy.png": "duplicate_image",
    }.items():
        lines.add(talk(f"<image>\nWhat is {fault}?", "It is there.", name), fault)


def _plant_signs(images: Path, lines: _Lines) -> None:
    """Records that can be trained on, but should be looked at."""
    lines.add(talk(f"Say {SCRIPT}<|eot_id|>.", "No."), "special_token_in_text")
    lines.add(talk("<image>\nWhat was it?", "Nobody knows."), "image_tag_in_text")
    lines.add(talk("Ring.", "A bell: \x07\x1b[2J"), "control_characters")
    lines.add(talk("Be silent.", "  "), "empty_answer")
    lines.add(talk("Repeat  this.", "repeat this."), "answer_repeats_question")
    lines.add(talk("Tell me all.", "All of it. " * 300), "over_long")
    lines.add(talk("Long. " * 600, "Short."), "nothing_to_learn")
    lines.add(json.loads(lines.lines[3]) | {"id": "new"}, "duplicate_record")
    other = talk("<image>\nAnything else?", "Nothing.", "image_qa/1_0.png", id="image_qa-1")
    lines.add(other, "duplicate_id")
