"""What a front door prints, and what it exits with."""

import errno

import pytest

from metamorph_jax.errors import UserError, nearest, run_main, visible


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


def test_control_characters_are_seen():
    assert visible("a\x1b[2J\tb\n\x7f\x9b\r") == "a\u241b[2J\tb\n\u2421\ufffd\u240d"
    assert visible("\u202egnp.exe") == "⟨U+202E⟩gnp.exe"  # would read backwards
    assert visible(b"\xff.png".decode("utf-8", "surrogateescape")) == "\\udcff.png"


def test_texts_of_data_do_nothing_to_a_terminal(capsys):
    code, text = exit_of(UserError("a\x1b]0;title\x07\n\tb\r"), capsys)
    assert (code, text) == (2, "error: a␛]0;title␇\n\tb␍\n")
    code, text = exit_of(PermissionError(errno.EACCES, "Permission denied", "/x\x1b[2J"), capsys)
    assert code == 2 and text.startswith("error: /x␛[2J: Permission denied")


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
