"""Eight faked CPU devices, checked array shapes, and compiled programs kept for the whole run."""

import os
import sys
import tempfile
from pathlib import Path

from jaxtyping import install_import_hook

RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Compiling is most of the suite's time, and many tests compile the same programs.
os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{tempfile.gettempdir()}/metamorph_jax_tests_{RUN}"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
# The import mode leaves sys.path alone; helpers of the tests and recipes live at the root.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# Annotations such as Float[Array, "B T D"] are checked while tests run, and nowhere else.
install_import_hook(
    [f"metamorph_jax.{room}" for room in ("models", "objectives", "ops", "sharding")],
    "beartype.beartype",
)
