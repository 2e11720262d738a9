"""What a front door prints, and what it exits with."""

import errno

import pytest

from metamorph_jax.errors import UserError, nearest, run_main


def exit_of(error, capsys, *flags):
    """Returns (exit code, standard error) of a front door that raises `error`."""

    def main(argv):
        if error is not None:
            raise error
        return None

    with pytest.raises(SystemExit) as caught:
        run_main(main, list(flags))
    return caught.value.code, capsys.readouterr().err


def test_success_is_zero(capsys):
    assert exit_of(None, capsys) == (0, "")


def test_a_user_error_is_one_line_and_two(capsys):
    assert exit_of(UserError("no such key"), capsys) == (2, "error: no such key\n")


def test_ctrl_c_is_130(capsys):
    assert exit_of(KeyboardInterrupt(), capsys) == (130, "interrupted\n")


def test_a_full_disk_says_so(capsys):
    code, text = exit_of(OSError(errno.ENOSPC, "No space left on device"), capsys)
    assert code == 2
    assert "no space left on the disk; make room" in text


def test_a_file_that_cannot_be_written_is_named(capsys):
    code, text = exit_of(PermissionError(errno.EACCES, "Permission denied", "/x/y"), capsys)
    assert (code, text) == (
        2,
        "error: /x/y: Permission denied; check the path and its permissions\n",
    )


def test_debug_keeps_the_traceback():
    def main(argv):
        assert argv == []
        raise UserError("wrong")

    with pytest.raises(UserError):
        run_main(main, ["--debug"])


def test_bugs_are_not_hidden():
    def main(argv):
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run_main(main, [])


def test_nearest_names_come_first():
    assert nearest("num_layer", ["num_heads", "num_layers", "x"])[0] == "num_layers"
