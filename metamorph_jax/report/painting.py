"""Visual tokens -> pictures, by the visualizer's own process: PyTorch never enters this one.

The visualizer is described in `metamorph_jax/visualizer/`; this module knows its command line only.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from metamorph_jax.errors import UserError
from metamorph_jax.typing import Float, Shaped

TOKENS_FILE, LIST_FILE = "visual_tokens.safetensors", "pictures.json"
_LAST_LINES = 8
# OpenMP threads wait for each other by spinning, which is quickest on an idle machine. Here another
# process computes at the same time, and spinning stole its cores and five times as much time from
# the painting itself (measured on two cores: 71 s of CPU time against 13 s).
_SHARE_CORES = {"GOMP_SPINCOUNT": "1000"}


class Painting:
    """Pictures that are being painted in the background.

    Args:
        visualizer: folder of a trained visualizer.
        tokens: of each picture.
        folder: receives the token file and the PNG files; older ones are replaced.
        encoder: fingerprint of the encoder whose tokens these are; the visualizer refuses others.
        origin: what else the token file, and each PNG, says about where it comes from.
    """

    def __init__(
        self,
        visualizer: Path,
        tokens: Float[np.ndarray, "count P E"],
        folder: Path,
        encoder: str,
        origin: Mapping[str, str] | None = None,
    ):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        metadata = dict(origin or {}) | {
            "num_images": str(len(tokens)),
            "encoder_fingerprint": encoder,
        }
        save_file({"visual_tokens": np.ascontiguousarray(tokens)}, folder / TOKENS_FILE, metadata)
        command = [sys.executable, "-m", "metamorph_jax.visualizer.paint"]
        command += [f"--visualizer={visualizer}", f"--tokens={folder / TOKENS_FILE}"]
        self._log = open(folder / "paint.log", "w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [*command, f"--out={folder}"],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=_SHARE_CORES | os.environ,
        )

    def finish(self) -> list[Shaped[np.ndarray, "height width 3"]]:
        """Waits and returns one picture for each block of tokens, in order: the first painted."""
        first = {entry["picture"]: entry["file"] for entry in reversed(self._wait())}
        files = [self._folder / first[index] for index in sorted(first)]
        return [np.asarray(Image.open(file).convert("RGB")) for file in files]

    def finish_files(self) -> list[Path]:
        """Waits and returns every PNG file."""
        return [self._folder / entry["file"] for entry in self._wait()]

    def _wait(self) -> list[dict[str, Any]]:
        """Waits and returns the visualizer's list of what it painted.

        Raises:
            UserError: painting failed; says what the process said.
        """
        code = self._process.wait()
        self._log.seek(0)
        said = self._log.read().strip().splitlines()
        self._log.close()
        if code:
            raise UserError(
                f"the visualizer could not paint (exit code {code}); it said:\n  "
                + "\n  ".join(said[-_LAST_LINES:])
            )
        return json.loads((self._folder / LIST_FILE).read_text("utf-8"))

    def cancel(self) -> None:
        """Ends the process, when its pictures are no longer wanted."""
        self._process.terminate()
        self._process.wait()
        self._log.close()
