"""A MetaMorph and a prompt -> a file of visual tokens, wherever the model lives.

A run of this project is JAX's: `python -m metamorph_jax.generate` answers in a process of its own.
A Hugging Face folder is PyTorch's: its classes (hub/remote/) answer here.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from metamorph_jax.errors import UserError
from metamorph_jax.hub.tensor_files import TensorFolder, read_json
from metamorph_jax.typing import Float
from metamorph_jax.visualizer.dataset import VISUAL_TOKENS
from metamorph_jax.visualizer.picture_files import CHECKPOINT, PROMPT

TOKENS_FILE = "visual_tokens.safetensors"
_CONFIG_FILE, _ANSWER_FILE = "config.json", "answer.json"
_CHECKPOINTS = "checkpoints"
_IMAGE_TAG = "<image>"
_MAX_NEW_TOKENS = 512  # as generate.py
_LAST_LINES = 8


def is_hf_folder(checkpoint: Path) -> bool:
    """Whether this is a Hugging Face folder rather than a run."""
    return (checkpoint / _CONFIG_FILE).is_file()


def find_run(checkpoint: Path) -> Path:
    """Returns the folder of the run; RUN/checkpoints and a checkpoint in it stand for it, too."""
    folder = checkpoint.absolute()
    if folder.name.isdigit():
        folder = folder.parent
    return folder.parent if folder.name == _CHECKPOINTS else checkpoint


def find_visualizer(named: Path | None, checkpoint: Path) -> Path:
    """Returns the visualizer to paint with: the one that was named, or the run's own.

    Raises:
        UserError: there is none.
    """
    if named is not None:
        return named
    folder = find_run(checkpoint) / "visualizer"
    if folder.is_dir():
        return folder
    raise UserError(
        f"{checkpoint} has no visualizer ({folder} is not there); train one with "
        "python -m metamorph_jax.visualizer.train, or name another with --visualizer=DIR"
    )


def ask(checkpoint: Path, prompt: str, images: Sequence[Path], out: Path) -> tuple[Path, str]:
    """Returns the file of visual tokens that a model answers with, and the text of its answer.

    Args:
        checkpoint: a run, one of its checkpoints, or a Hugging Face folder.
        prompt: "<image>" marks where an image goes; without any, images are put in front.
        images: files.
        out: folder of the file, made when missing.

    Raises:
        UserError: the model cannot be loaded or asked, or answers without a picture.
    """
    for image in images:
        if not image.is_file():
            raise UserError(f"--image={image}: no such file")
    out.mkdir(parents=True, exist_ok=True)
    answer = _ask_hf if is_hf_folder(checkpoint) else _ask_run
    return answer(checkpoint, prompt, images, out)


def run_jax(module: str, flags: Sequence[str], failure: str) -> None:
    """Runs a command of the JAX side in a process of its own.

    Args:
        module: below metamorph_jax.
        flags: of the command.
        failure: what to say first when it fails.

    Raises:
        UserError: it failed; says what the process said.
    """
    command = [sys.executable, "-m", f"metamorph_jax.{module}", *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        said = done.stdout.strip().splitlines()[-_LAST_LINES:]
        raise UserError(
            f"{failure} (exit code {done.returncode}); it said:\n  " + "\n  ".join(said)
        )


def _ask_run(checkpoint: Path, prompt: str, images: Sequence[Path], out: Path) -> tuple[Path, str]:
    """Asks a run through its own command."""
    file = out / TOKENS_FILE
    flags = [f"--checkpoint={checkpoint}", f"--prompt={prompt}", f"--out={out}", "--tokens_only"]
    flags += [f"--save_visual_tokens={file}", *(f"--image={image}" for image in images)]
    run_jax("generate", flags, f"{checkpoint} could not be asked")
    answer = json.loads((out / _ANSWER_FILE).read_text("utf-8"))
    _check_has_picture(len(answer["images"]), answer["text"], checkpoint)
    return file, answer["text"]


def _ask_hf(checkpoint: Path, prompt: str, images: Sequence[Path], out: Path) -> tuple[Path, str]:
    """Asks an exported folder through its PyTorch classes."""
    config = read_json(checkpoint / _CONFIG_FILE)
    if config.get("model_type") != "metamorph":
        raise UserError(
            f"{checkpoint / _CONFIG_FILE}: model_type {config.get('model_type')!r} is no "
            "MetaMorph, which predicts pictures; one comes out of "
            "python -m metamorph_jax.convert orbax-to-hf"
        )
    files = {spec.file for spec in TensorFolder(checkpoint).specs.values()}  # safetensors only
    tokens, text = _generate(checkpoint, _content(prompt, len(images)), images)
    _check_has_picture(len(tokens), text, checkpoint)
    metadata = {"num_images": str(len(tokens)), PROMPT: prompt, CHECKPOINT: _hash(files)}
    save_file({VISUAL_TOKENS: tokens.float().contiguous()}, out / TOKENS_FILE, metadata)
    return out / TOKENS_FILE, text


def _generate(
    folder: Path, content: list[dict[str, str]], images: Sequence[Path]
) -> tuple[Float[Tensor, "count P E"], str]:
    """Returns visual tokens and text of an exported model's answer."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from metamorph_jax.hub import auto

    auto.register()
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype="auto", use_safetensors=True, local_files_only=True
        )
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            images=[str(image) for image in images],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        found = (
            model.eval()
            .to(device)
            .generate_multimodal(**inputs.to(device), max_new_tokens=_MAX_NEW_TOKENS)
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} could not be asked: {error}") from error
    ids = found.sequences[0, inputs["input_ids"].shape[1] :]
    text = processor.decode(ids[ids != model.config.image_token_id], skip_special_tokens=True)
    return found.visual_tokens[0].cpu(), text


def _content(prompt: str, num_images: int) -> list[dict[str, Any]]:
    """Returns a prompt as a message's content, its images where generate.py has them."""
    num_tags = prompt.count(_IMAGE_TAG)
    if num_tags == 0:
        prompt = f"{_IMAGE_TAG}\n" * num_images + prompt
    elif num_tags != num_images:
        raise UserError(
            f"--prompt has {num_tags} {_IMAGE_TAG} tag(s), but {num_images} image(s) were given; "
            "give one --image per tag, in order, or leave out all tags to put them in front"
        )
    first, *rest = prompt.split(_IMAGE_TAG)
    parts: list[dict[str, Any]] = [{"type": "text", "text": first}]
    for text in rest:
        parts += [{"type": "image"}, {"type": "text", "text": text}]
    return [part for part in parts if part.get("text") != ""]


def _check_has_picture(count: int, text: str, checkpoint: Path) -> None:
    """Raises a UserError if there is nothing to paint."""
    if not count:
        raise UserError(
            f"{checkpoint} answered without a picture: {text.strip()!r}; ask for one, as in the "
            'training data ("Generate an image of ...")'
        )


def _hash(files: set[Path]) -> str:
    """Returns the SHA-256 of files, in order of their names."""
    digest = hashlib.sha256()
    for path in sorted(files):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
