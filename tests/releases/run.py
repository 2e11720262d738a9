"""Exports under other releases of transformers: `make releases` (installs each into a venv).

Not part of the suite, because it downloads. What is exported here is loaded there, in a process
that has never heard of this package.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from metamorph_jax import convert
from metamorph_jax.data.tokenizer import load_tokenizer
from metamorph_jax.decoding.generator import Generator, Prompt, Sampling
from metamorph_jax.hub.metamorph_config import choose_placeholder
from tests.e2e.test_convert import picture, write_decoder, write_llava, write_tower

RELEASES = ("4.57.6", "5.0.0")
OTHERS = ["torch==2.13.0", "numpy", "pillow", "safetensors", "jinja2"]
LOADER = Path(__file__).with_name("load.py")
PROMPTS = [("Say a word.", 0), ("What is this?", 1)]
NUM_STEPS = 32


def write_exports(root: Path) -> list[dict]:
    """Writes both kinds of export; returns what each is asked, and what ours answers."""
    decoder, tower = write_decoder(root / "decoder"), write_tower(root / "tower")
    llava, cases = write_llava(root / "hub"), []
    sources = {"metamorph": [f"--llm={decoder}", f"--vision={tower}"]}
    sources["llava"] = [f"--model={llava}"]
    for kind, options in sources.items():
        checkpoint, folder = root / f"{kind}_run", root / kind
        convert.main(["hf-to-orbax", *options, f"--out={checkpoint}"])
        convert.main(["orbax-to-hf", str(checkpoint), f"--out={folder}"])
        generator, tokenizer = Generator.load(checkpoint), load_tokenizer(folder)
        placeholder = choose_placeholder(tokenizer, generator.config.llm.vocab_size)
        for text, num_images in PROMPTS:
            spoken = text if kind == "metamorph" else f"\n{text}" * bool(num_images) or text
            prompt = Prompt("<image>" * num_images + spoken, (picture(),) * num_images)
            (answer,) = generator.generate([prompt], Sampling(max_new_tokens=NUM_STEPS))
            fields = {"kind": kind, "folder": kind, "text": spoken, "num_images": num_images}
            cases.append(fields | {"placeholder": placeholder.id, "steps": answer.steps})
    return cases


def main() -> int:
    """Runs all releases; returns how many failed."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "cases.json").write_text(json.dumps(write_exports(root)))
        Image.fromarray(picture()).save(root / "picture.png")
        for release in RELEASES:
            python = Path(f".venv-transformers-{release}") / "bin" / "python"
            if not python.exists():
                subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
                wanted = [f"transformers=={release}", *OTHERS]
                subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
            command = [python.absolute(), "-I", LOADER, root]
            failed += subprocess.run(command, cwd=root).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
