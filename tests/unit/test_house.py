"""The house stays readable: short files, short functions, documented names, no unsafe loading."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "metamorph_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in MODULES}
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
FORBIDDEN = re.compile(
    r"\bimport pickle\b|\btorch\.load\(|allow_pickle=True|shell=True|(?<![.\w])eval\("
    r"|trust_remote_code=True"
)


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_sizes_and_docstrings(path):
    text, tree = path.read_text(), TREES[path]
    assert len(text.splitlines()) <= MAX_FILE_LINES
    assert ast.get_docstring(tree), "a module says what lives here"
    for function in functions(tree):
        length = function.end_lineno - function.lineno + 1
        assert length <= MAX_FUNCTION_LINES, f"{function.name} has {length} lines"
    assert not FORBIDDEN.search(text), FORBIDDEN.search(text)


def test_nine_of_ten_functions_are_short_and_documented():
    every = [function for tree in TREES.values() for function in functions(tree)]
    lengths = sorted(function.end_lineno - function.lineno + 1 for function in every)
    assert lengths[int(0.9 * len(lengths))] <= 40
    public = [
        node
        for tree in TREES.values()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    documented = [node for node in public if ast.get_docstring(node)]
    assert len(documented) >= 0.9 * len(public)
