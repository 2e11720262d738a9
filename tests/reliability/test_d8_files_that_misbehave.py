"""D8: files that are missing, locked, slow, or change while they are read."""

import errno
import os
import time

import pytest
from PIL import Image

from metamorph_jax.data import image_files
from tests.reliability.image_cases import encoded, load, refusal

MISSING, UNREADABLE = "missing_media", "unreadable_media"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "a.bmp")
    return folder


def before_opening(monkeypatch, action):
    """Calls `action` between the check of a path and its opening."""
    real_open = os.open

    def hooked(path, *args, **kwargs):
        action(path)
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(image_files.os, "open", hooked)


def while_reading(monkeypatch, action):
    """Calls `action` after the size of an open file is known, before it is read."""
    real_fstat = os.fstat
    calls = []

    def hooked(descriptor):
        status = real_fstat(descriptor)
        if not calls:
            calls.append(descriptor)
            action()
        return status

    monkeypatch.setattr(image_files.os, "fstat", hooked)


@pytest.mark.parametrize("name", ["missing.bmp", "missing/a.bmp", "a.bmp/a.bmp"])
def test_d8_missing_file(name, root):
    error = refusal(root, name)
    assert error.reason == MISSING
    assert "check the path" in str(error) and str(root) in str(error)


def test_d8_missing_root(root):
    assert refusal(root / "missing", "a.bmp").reason == MISSING


@pytest.fixture
def as_nobody():
    """Nobody may read what belongs to others; the superuser would not notice a locked file."""
    superuser = os.geteuid() == 0
    if superuser:
        os.seteuid(65534)
    yield
    if superuser:
        os.seteuid(0)


@pytest.mark.parametrize("locked", ["a.bmp", "."])
def test_d8_no_permission(locked, root, request):
    for folder in (root, *root.parents[:3]):
        if folder.stat().st_uid == os.geteuid():
            folder.chmod(0o755)
    (root / locked).chmod(0)
    request.getfixturevalue("as_nobody")
    error = refusal(root, "a.bmp")
    assert error.reason == MISSING
    assert "Permission denied" in str(error)


def test_d8_slow_drive(root, monkeypatch):
    before_opening(monkeypatch, lambda path: time.sleep(5))
    monkeypatch.setattr(image_files, "READ_TIMEOUT_SECS", 0.1)
    start = time.monotonic()
    error = refusal(root, "a.bmp")
    assert time.monotonic() - start < 4
    assert error.reason == MISSING
    assert "was not read within 0.1 s" in str(error)


def test_d8_slow_drive_that_answers_in_time(root, monkeypatch):
    before_opening(monkeypatch, lambda path: time.sleep(0.2))
    assert load(root, "a.bmp").shape == (8, 8, 3)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES])
def test_d8_failing_drive(number, root, monkeypatch):
    def fail(path):
        raise OSError(number, os.strerror(number), path)

    before_opening(monkeypatch, fail)
    error = refusal(root, "a.bmp")
    assert error.reason == MISSING
    assert os.strerror(number) in str(error)


def test_d8_a_process_out_of_files_blames_no_image(root, monkeypatch):
    def fail(path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)

    before_opening(monkeypatch, fail)
    with pytest.raises(OSError, match="Too many open files"):
        load(root, "a.bmp")


def test_d8_removed_after_the_check(root, monkeypatch):
    before_opening(monkeypatch, os.unlink)
    assert refusal(root, "a.bmp").reason == MISSING


def test_d8_replaced_by_a_link_after_the_check(root, monkeypatch):
    (root.parent / "secret.bmp").write_bytes(encoded("BMP"))

    def replace(path):
        os.unlink(path)
        os.symlink("../secret.bmp", path)

    before_opening(monkeypatch, replace)
    assert refusal(root, "a.bmp").reason == MISSING


def test_d8_replaced_by_a_pipe_after_the_check(root, monkeypatch):
    def replace(path):
        os.unlink(path)
        os.mkfifo(path)

    before_opening(monkeypatch, replace)
    error = refusal(root, "a.bmp")
    assert error.reason == "forbidden_path"
    assert "changed under us" in str(error)


@pytest.mark.parametrize("new_bytes", [0, 20, 150, 10_000])
def test_d8_changed_while_it_is_read(new_bytes, root, monkeypatch):
    """A copy under way, or a file that is written anew: never a mixture of old and new."""

    def change():
        with open(root / "a.bmp", "r+b") as file:
            file.truncate(new_bytes)

    while_reading(monkeypatch, change)
    error = refusal(root, "a.bmp")
    assert error.reason == UNREADABLE
    assert "changed while it was read" in str(error)


def test_d8_too_many_bytes(root):
    with open(root / "huge.bmp", "wb") as file:
        file.truncate(image_files.MAX_FILE_BYTES + 1)  # sparse: takes no room on the disk
    error = refusal(root, "huge.bmp")
    assert error.reason == "too_large_media"
    assert f"at most {image_files.MAX_FILE_BYTES:,} are read" in str(error)
