"""Where the golden numbers are: METAMORPH_GOLDEN (with `metamorph/` and `llava/`) or our copy."""

import json
import os
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

_PARENT = Path(os.environ.get("METAMORPH_GOLDEN") or Path(__file__).parent / "golden")
GOLDEN = _PARENT / "metamorph"
LLAVA = _PARENT / "llava"


def load_case(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Returns the JSON part and the tensors (none for JSON-only cases) of a golden case."""
    fields = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))
    tensors = GOLDEN / f"{name}.safetensors"
    return fields, load_file(tensors) if tensors.exists() else {}
