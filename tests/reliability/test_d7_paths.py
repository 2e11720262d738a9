"""D7: a path in a record reaches nothing but regular files below the source's folder."""

import os
import socket
import tempfile

import pytest
from PIL import Image

from tests.reliability.image_cases import load, refusal

FORBIDDEN, MISSING = "forbidden_path", "missing_media"

# Path as written -> reason. There is a picture beside the folder: ../secret.png.
PATHS = {
    "../secret.png": FORBIDDEN,
    "./../secret.png": FORBIDDEN,
    "sub/../../secret.png": FORBIDDEN,
    "red.png/../../secret.png": FORBIDDEN,
    "sub/../sub/../../secret.png": FORBIDDEN,
    "../images2/a.png": FORBIDDEN,  # its name begins like the folder's
    "..": FORBIDDEN,
    "../": FORBIDDEN,
    "/": FORBIDDEN,
    "/etc/passwd": FORBIDDEN,
    "//etc/passwd": FORBIDDEN,
    "/dev/zero": FORBIDDEN,
    "/dev/stdin": FORBIDDEN,
    "/proc/self/environ": FORBIDDEN,
    "/proc/self/fd/0": FORBIDDEN,
    "link.png": FORBIDDEN,  # a link to ../secret.png
    "link_to_link.png": FORBIDDEN,
    "folder/secret.png": FORBIDDEN,  # folder is a link to ..
    "device.png": FORBIDDEN,  # a link to /dev/zero
    "pipe.png": FORBIDDEN,  # opening it would wait for ever
    "socket.png": FORBIDDEN,
    "sub": FORBIDDEN,
    "sub/": FORBIDDEN,
    "": FORBIDDEN,
    ".": FORBIDDEN,
    "red.png\0.txt": FORBIDDEN,
    "\0": FORBIDDEN,
    "file:///etc/passwd": FORBIDDEN,
    "file://localhost/etc/passwd": FORBIDDEN,
    "http://127.0.0.1/a.png": FORBIDDEN,
    "https://example.org/red.png": FORBIDDEN,
    "HTTP://169.254.169.254/latest/meta-data": FORBIDDEN,
    "s3://bucket/red.png": FORBIDDEN,
    "data:image/png;base64,iVBORw0KGgo=": FORBIDDEN,
    "\ud800.png": FORBIDDEN,  # half a surrogate pair
    "~/secret.png": MISSING,  # no shell expands it
    "~root/secret.png": MISSING,
    "$HOME/secret.png": MISSING,
    "\uff0e\uff0e/secret.png": MISSING,  # wide dots
    "\u2024\u2024/secret.png": MISSING,  # one-dot leaders
    "\u2025/secret.png": MISSING,  # a two-dot leader
    "..\u200b/secret.png": MISSING,
    "..\\secret.png": MISSING,
    "\\\\server\\share\\a.png": MISSING,
    "C:\\Windows\\win.ini": MISSING,
    "%2e%2e/secret.png": MISSING,
    "red.png/a.png": MISSING,
    "loop.png": MISSING,  # a link to itself
    "dangling.png": MISSING,
    "red.png ": MISSING,
    "RED.PNG": MISSING,
    "a" * 300: MISSING,
    "a/" * 5000 + "b": MISSING,
    "missing.png": MISSING,
}


@pytest.fixture(scope="module")
def root():
    # Names of sockets are short, pytest's folders are not.
    with tempfile.TemporaryDirectory() as parent:
        folder = os.path.join(parent, "images")
        os.makedirs(os.path.join(folder, "sub"))
        os.makedirs(os.path.join(parent, "images2"))
        for name in ("secret.png", "images/red.png", "images2/a.png"):
            Image.new("RGB", (8, 8), "red").save(os.path.join(parent, name))
        links = {
            "link.png": "../secret.png",
            "link_to_link.png": "link.png",
            "folder": "..",
            "device.png": "/dev/zero",
            "loop.png": "loop.png",
            "dangling.png": "nowhere.png",
            "inside.png": "sub/../red.png",
        }
        for name, target in links.items():
            os.symlink(target, os.path.join(folder, name))
        os.mkfifo(os.path.join(folder, "pipe.png"))
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.join(folder, "socket.png"))
        yield folder


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ascii(path)[1:40])
def test_d7_paths(path, root):
    assert refusal(root, path).reason == PATHS[path]


def test_d7_number_of_paths():
    assert len(PATHS) >= 40


@pytest.mark.parametrize(
    "path",
    ["red.png", "./red.png", "red.png/", "sub/../red.png", "../images/red.png", "inside.png"],
)
def test_d7_paths_inside(path, root):
    assert (load(root, path) == (255, 0, 0)).all()


def test_d7_absolute_path_inside(root):
    assert (load(root, os.path.join(root, "red.png")) == (255, 0, 0)).all()


def test_d7_folder_that_is_a_link(root, tmp_path):
    (tmp_path / "data").symlink_to(root)
    assert (load(tmp_path / "data", "red.png") == (255, 0, 0)).all()
    assert refusal(tmp_path / "data", "../secret.png").reason == FORBIDDEN
