"""The one exception that means "the user can fix this".

Front doors print its text and exit with code 2; everything else is a bug and keeps its traceback.
"""

import difflib
import errno
import sys
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """What is wrong, where, what was expected, and what to do, in one readable message."""


def nearest(name: str, candidates: Iterable[str], count: int = 3) -> list[str]:
    """Returns the candidates that look most like `name`, best first (possibly none)."""
    return difflib.get_close_matches(name, list(candidates), n=count, cutoff=0.5)


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
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except OSError as error:
        if debug or (error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT)):
            raise
        print(f"error: {_file_trouble(error)}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code or 0)


def _file_trouble(error: OSError) -> str:
    """Returns what is wrong with which file, and what to do."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}no space left on the disk; make room, then run the same command again"
    return f"{where}{error.strerror}; check the path and its permissions"
