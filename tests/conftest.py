"""Eight faked CPU devices, strict shapes and runtime annotation checks for every test."""

import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# The import mode leaves sys.path alone; helpers of the tests and recipes live at the root.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
