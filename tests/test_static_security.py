"""What the source must never contain: unsafe loading, evaluation of text, open binds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pdv_mp", "launcher", "bench")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

UNSAFE_MODULES = {
    "pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
    "multiprocessing",
}
UNSAFE_BUILTINS = {"eval", "exec", "compile"}
UNSAFE_METHODS = {"send_pyobj", "recv_pyobj", "unsafe_load", "full_load"}
OPEN_BINDS = ("0.0.0.0", "tcp://*", "[::]")


def names(node: ast.AST) -> Iterator[str]:
    """The modules that a node imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name.split(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module.split(".")[0]


def called(node: ast.Call) -> str:
    function = node.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def faults(tree: ast.AST) -> Iterator[str]:
    """Every use of what is forbidden, with its line."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        yield from (f"{line}: imports {name}" for name in names(node) if name in UNSAFE_MODULES)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from (f"{line}: {text}" for text in OPEN_BINDS if text in node.value)
        if not isinstance(node, ast.Call):
            continue
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        owner = ast.unparse(node.func)
        if isinstance(node.func, ast.Name) and owner in UNSAFE_BUILTINS:
            yield f"{line}: calls {owner}"
        if called(node) in UNSAFE_METHODS:
            yield f"{line}: calls {owner}"
        if owner == "yaml.load":
            yield f"{line}: yaml.load instead of yaml.safe_load"
        if owner == "torch.load" and keywords.get("weights_only") != "True":
            yield f"{line}: torch.load without weights_only=True"
        if keywords.get("trust_remote_code", "False") != "False":
            yield f"{line}: trusts remote code"
        if keywords.get("shell", "False") != "False":
            yield f"{line}: runs a shell"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_source_has_nothing_unsafe(path: Path) -> None:
    assert list(faults(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "socket.recv_pyobj()",
        "yaml.load(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "socket.bind('tcp://*:5555')",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "subprocess.run(x, shell=True)",
    ],
)
def test_the_check_sees_what_is_unsafe(source: str) -> None:
    assert list(faults(ast.parse(source)))
