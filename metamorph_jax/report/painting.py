"""Visual tokens -> pictures, by the visualizer's own process: PyTorch never enters this one.

The visualizer is described in `metamorph_jax/visualizer/`; this module knows its command line only.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from metamorph_jax.errors import UserError
from metamorph_jax.typing import Float, Shaped

TOKENS_FILE = "visual_tokens.safetensors"
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
    """

    def __init__(
        self,
        visualizer: Path,
        tokens: Float[np.ndarray, "count P E"],
        folder: Path,
        encoder: str,
    ):
        self._folder, self._count = folder, len(tokens)
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {"num_images": str(len(tokens)), "encoder_fingerprint": encoder}
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
        """Waits and returns the pictures, in the order of their tokens.

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
        files = [self._folder / f"image_{index:05d}.png" for index in range(self._count)]
        return [np.asarray(Image.open(file).convert("RGB")) for file in files]

    def cancel(self) -> None:
        """Ends the process, when its pictures are no longer wanted."""
        self._process.terminate()
        self._process.wait()
        self._log.close()
