"""Front door: `python -m metamorph_jax.generate` answers one prompt in text and pictures.

    python -m metamorph_jax.generate --checkpoint=runs/digits --out=/tmp/three \
        --prompt="Generate an image of a thin three."

writes `answer.json` (text, ids, where pictures are), `visual_tokens.safetensors` (what the model
predicted) and, with a visualizer, one PNG file per picture. Read `decoding/generator.py` next.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metamorph_jax.errors import UserError, run_main

if TYPE_CHECKING:
    from metamorph_jax.decoding.generator import Answer, Generator, Sampling

ANSWER_FILE = "answer.json"
TOKENS_FILE = "visual_tokens.safetensors"


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    flags = _parse(argv)
    # Heavy imports come after parsing, so that --help and typing mistakes answer at once.
    from metamorph_jax.checkpoints.folders import find_checkpoints
    from metamorph_jax.decoding.generator import Generator, Prompt, Sampling
    from metamorph_jax.runtime.compile_cache import keep_compiled
    from metamorph_jax.runtime.environment import check_alone

    check_alone(os.environ, "generate")
    keep_compiled()
    sampling = Sampling(
        max_new_tokens=flags.max_new_tokens,
        temperature=flags.temperature,
        top_p=flags.top_p,
        seed=flags.seed,
    )
    sampling.check()
    directory, _ = find_checkpoints(flags.checkpoint, None)
    visualizer = None if flags.tokens_only else find_visualizer(flags.visualizer, directory.parent)
    generator = Generator.load(flags.checkpoint)
    (answer,) = generator.generate([Prompt(flags.prompt, tuple(flags.image))], sampling)
    write_answer(flags.out, flags.prompt, flags.image, sampling, generator, answer)
    tokens_file = flags.save_visual_tokens or flags.out / TOKENS_FILE
    save_visual_tokens(tokens_file, flags.prompt, generator, answer)
    print(answer.text, flush=True)
    if not len(answer.visual_tokens):
        print(f"no picture; {flags.out / ANSWER_FILE}")
    elif flags.tokens_only:
        print(tokens_file)
    elif visualizer is None:
        print(f"no visualizer, so {len(answer.visual_tokens)} picture(s) stay tokens; {flags.out}")
    else:
        for file in paint(flags.out, flags.prompt, visualizer, generator, answer):
            print(file)
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m metamorph_jax.generate",
        description="Answers one prompt in text and pictures.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, type=Path, help="folder of a run, or one checkpoint in it")
    add("--prompt", required=True, help='what to say; "<image>" marks where an image goes')
    add("--image", action="append", default=[], type=Path, help="an image file; repeat for more")
    add("--out", required=True, type=Path, help="folder for the answer")
    add("--save_visual_tokens", type=Path, help="file (default: OUT/visual_tokens.safetensors)")
    add("--visualizer", type=Path, help="what paints (default: RUN/visualizer, if it is there)")
    add("--tokens_only", action="store_true", help="do not paint, even if there is a visualizer")
    add("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)")
    add("--top_p", type=float, default=1.0, help="draw from the likeliest with this probability")
    add("--seed", type=int, default=0, help="of the draws")
    add("--max_new_tokens", type=int, default=512, help="text and visual tokens together")
    add("--debug", action="store_true", help="show tracebacks of user errors")
    return parser.parse_args(argv)


def find_visualizer(named: Path | None, run: Path) -> Path | None:
    """Returns the folder of the visualizer: the one that was named, or the run's own, or None.

    Raises:
        UserError: the one that was named is none.
    """
    folder = run / "visualizer" if named is None else named
    if any((folder / entry).exists() for entry in ("checkpoints", "config.json")):
        return folder
    if named is None:
        return None
    raise UserError(
        f"--visualizer={named}: no visualizer is there; expected the folder that "
        "python -m metamorph_jax.visualizer.train wrote, with checkpoints/ or config.json"
    )


def write_answer(
    out: Path,
    prompt: str,
    images: list[Path],
    sampling: "Sampling",
    generator: "Generator",
    answer: "Answer",
) -> None:
    """Writes answer.json.

    Args:
        out: folder, made when missing.
        prompt: what was asked.
        images: that came with it.
        sampling: how it was answered.
        generator: by whom.
        answer: what was said.

    Raises:
        UserError: the folder cannot be written.
    """
    fields = {
        "prompt": prompt,
        "prompt_images": [str(image) for image in images],
        "text": answer.text,
        "ids": answer.ids,
        "steps": answer.steps,
        "images": _images(answer),
        "finish": answer.finish,
        "well_formed": answer.well_formed,
        "sampling": dataclasses.asdict(sampling),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        lines = [f' "{key}": {json.dumps(fields[key], ensure_ascii=False)}' for key in fields]
        (out / ANSWER_FILE).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out={out}: the answer could not be written ({error})") from error


def save_visual_tokens(file: Path, prompt: str, generator: "Generator", answer: "Answer") -> None:
    """Writes the visual tokens of an answer for a visualizer, which needs nothing else of it.

    The tensor "visual_tokens" is float32 [pictures, P, E]; the metadata says what was asked, and
    which checkpoint and which encoder the tokens come from.

    Raises:
        UserError: the file cannot be written.
    """
    import numpy as np
    from safetensors.numpy import save_file

    metadata = origin(prompt, generator) | {"num_images": str(len(answer.visual_tokens))}
    metadata["encoder_fingerprint"] = _fingerprint(generator)
    tokens = np.ascontiguousarray(answer.visual_tokens)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"visual_tokens": tokens}, file, metadata)
    except Exception as error:  # the library has its own for what the system says
        raise UserError(f"{file}: the visual tokens could not be written ({error})") from error


def origin(prompt: str, generator: "Generator") -> dict[str, str]:
    """Returns where visual tokens come from, for the metadata of files."""
    from metamorph_jax.checkpoints.manifest import fingerprint

    return {"prompt": prompt, "checkpoint_fingerprint": fingerprint(generator.checkpoint)}


def paint(
    out: Path, prompt: str, visualizer: Path, generator: "Generator", answer: "Answer"
) -> list[Path]:
    """Paints the pictures of an answer into `out`, in a process of its own, and returns the files.

    Raises:
        UserError: painting failed; what was written before stays.
    """
    from metamorph_jax.report.painting import Painting

    encoder, tokens = _fingerprint(generator), answer.visual_tokens
    return Painting(visualizer, tokens, out, encoder, origin(prompt, generator)).finish_files()


def _images(answer: "Answer") -> list[dict[str, Any]]:
    """Returns where in `steps` the pictures are."""
    num_images, num_tokens = answer.visual_tokens.shape[:2]
    visual = [place for place, step in enumerate(answer.steps) if step < 0]
    return [
        {"first_step": visual[index * num_tokens], "num_tokens": num_tokens}
        for index in range(num_images)
    ]


def _fingerprint(generator: "Generator") -> str:
    from metamorph_jax.decoding.features import Encoder

    return Encoder(generator.config, generator.params["vision_tower"]).fingerprint


if __name__ == "__main__":
    run_main(main)
