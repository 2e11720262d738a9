"""Compiled programs are kept between runs, in a folder of the user.

The folder is $XDG_CACHE_HOME/metamorph_jax or ~/.cache/metamorph_jax, or what
JAX_COMPILATION_CACHE_DIR names; an empty JAX_COMPILATION_CACHE_DIR keeps nothing. It may be deleted
at any time. Who can write to it can run code as its user: keep it to yourself.
"""

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path

_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_MIN_COMPILE_SECS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def keep_compiled() -> None:
    """Lets jax keep what it compiles; call it before anything is compiled.

    A folder that cannot be made is no reason to stop: then nothing is kept.
    """
    folder = cache_folder(os.environ)
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    if _MIN_COMPILE_SECS not in os.environ:  # a start consists of many small programs, too
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def cache_folder(environment: Mapping[str, str]) -> Path | None:
    """Returns where compiled programs are kept; None: nowhere.

    Our own folder has one for each kind of processor, because programs for CPUs use what theirs
    can do, and homes are shared.
    """
    if _VARIABLE in environment:
        return Path(environment[_VARIABLE]) if environment[_VARIABLE] else None
    home = environment.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "metamorph_jax" / _processor()


def _processor() -> str:
    """Returns a name that processors with the same instructions share."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    keys = ("vendor_id", "model name", "flags", "Features")
    told = sorted({line for line in lines if line.startswith(keys)})
    return hashlib.sha256("\n".join([platform.machine(), *told]).encode()).hexdigest()[:12]
