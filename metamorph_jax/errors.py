"""The one exception that means "the user can fix this", and how its text is shown.

Front doors print it and exit with code 2; everything else is a bug and keeps its traceback. Texts
name what stands in data, so they are made `visible` before a terminal gets them.
"""

import difflib
import errno
import sys
from collections.abc import Callable, Iterable

_SHOWN = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
_SHOWN |= {0x7F: 0x2421} | {code: 0xFFFD for code in range(0x80, 0xA0)}
# They turn around or hide the text that follows; shown, not obeyed.
_SHOWN |= {
    code: f"⟨U+{code:04X}⟩"
    for code in (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
# Bytes of a file name that is no UTF-8; no file and no terminal takes them as they are.
_SHOWN |= {code: f"\\u{code:04x}" for code in range(0xD800, 0xE000)}


class UserError(ValueError):
    """What is wrong, where, what was expected, and what to do, in one readable message."""


def nearest(name: str, candidates: Iterable[str], count: int = 3) -> list[str]:
    """Returns the candidates that look most like `name`, best first (possibly none)."""
    return difflib.get_close_matches(name, list(candidates), n=count, cutoff=0.5)


def visible(text: object) -> str:
    """Returns a text that any terminal may show: control characters are seen and do nothing.

    Newlines and tabs stay; halves of surrogate pairs, which no encoding has, are escaped.
    """
    return str(text).translate(_SHOWN)


def run_main(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> None:
    """Runs a front door and exits: 0, what `main` returns, 2 for a UserError, 130 for Ctrl-C.

    Args:
        main: takes the arguments after the program's name.
        argv: those arguments; None: from the command line. `--debug` keeps tracebacks.
    """
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    try:
        code = main([argument for argument in arguments if argument != "--debug"])
    except (UserError, OSError, KeyboardInterrupt) as error:
        code = None if debug else report(error)
        if code is None:
            raise
    sys.exit(code or 0)


def report(error: BaseException) -> int | None:
    """Prints what a user can fix and returns the exit code; None: it is none of that, but a bug."""
    if isinstance(error, UserError):
        print(f"error: {visible(error)}", file=sys.stderr)
        return 2
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError) and (is_full or error.filename is not None):
        print(f"error: {visible(_file_trouble(error))}", file=sys.stderr)
        return 2
    return None


def _file_trouble(error: OSError) -> str:
    """Returns what is wrong with which file, and what to do."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}no space left on the disk; make room, then run the same command again"
    return f"{where}{error.strerror}; check the path and its permissions"
