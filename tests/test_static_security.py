"""What the source must never contain: unsafe loading, evaluation of text, open binds.

Names are followed through imports, so that ``from torch import load as fetch`` hides nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from pdv_mp.binding import is_loopback, resolve_host
from pdv_mp.config import ServerOptions

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pdv_mp", "launcher", "gateway", "bench")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

UNSAFE_MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "pickletools",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "multiprocessing",
}
UNSAFE_CALLS = {
    "builtins.eval",
    "builtins.exec",
    "builtins.compile",
    "builtins.__import__",
    "os.popen",
    "os.system",
    "runpy.run_module",
    "runpy.run_path",
    "tempfile.mktemp",
    "torch.hub.load",
    "torch.jit.load",
    "torch.save",
    "yaml.dump",
    "yaml.full_load",
    "yaml.full_load_all",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
}
UNSAFE_METHODS = {"send_pyobj", "recv_pyobj", "read_pickle", "to_pickle"}
UNSAFE_BUILTINS = {name.split(".")[1] for name in UNSAFE_CALLS if name.startswith("builtins.")}
NEEDED_KEYWORDS = {"torch.load": ("weights_only", "True")}
FALSE_KEYWORDS = ("trust_remote_code", "allow_pickle", "shell")
OPEN_BINDS = ("0.0.0.0", "tcp://*", "[::]")


def modules(node: ast.AST) -> Iterator[str]:
    """The modules that a node imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module


def imported(tree: ast.AST) -> dict[str, str]:
    """What names stand for: ``{"fetch": "torch.load"}``."""
    names = {name: f"builtins.{name}" for name in UNSAFE_BUILTINS}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def meaning(node: ast.expr, names: dict[str, str]) -> str:
    """The full name of what is called: ``torch.load`` for ``t.load`` where torch is t."""
    first, dot, rest = ast.unparse(node).partition(".")
    return names.get(first, first) + dot + rest


def call_faults(node: ast.Call, names: dict[str, str]) -> Iterator[str]:
    called = meaning(node.func, names)
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if called in UNSAFE_CALLS or called.rpartition(".")[2] in UNSAFE_METHODS:
        yield f"calls {called}"
    name, value = NEEDED_KEYWORDS.get(called, ("", ""))
    if name and keywords.get(name) != value:
        yield f"{called} without {name}={value}"
    if called.endswith("Model.from_pretrained") or "AutoModel" in called:
        loads = called.endswith(".from_pretrained")
        if loads and keywords.get("use_safetensors") != "True":
            yield f"{called} without use_safetensors=True"
    for name in FALSE_KEYWORDS:
        if keywords.get(name, "False") != "False":
            yield f"{name} is not False"


def faults(tree: ast.AST) -> Iterator[str]:
    """Every use of what is forbidden, with its line."""
    names = imported(tree)
    for node in ast.walk(tree):
        found: list[str] = [
            f"imports {name}" for name in modules(node) if name.split(".")[0] in UNSAFE_MODULES
        ]
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += [text for text in OPEN_BINDS if text in node.value]
        elif isinstance(node, ast.Dict):
            found += [
                f"{key.value} is not False"
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant)
                and key.value in FALSE_KEYWORDS
                and ast.unparse(value) != "False"
            ]
        elif isinstance(node, ast.Call):
            found += call_faults(node, names)
        yield from (f"{getattr(node, 'lineno', 0)}: {text}" for text in found)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_source_has_nothing_unsafe(path: Path) -> None:
    assert list(faults(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import dill as d",
        "import multiprocessing.shared_memory",
        "eval('1')",
        "import builtins\nbuiltins.exec('1')",
        "__import__('pickle')",
        "socket.recv_pyobj()",
        "self.socket.send_pyobj(1)",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "from yaml import unsafe_load as parse\nparse(text)",
        "import torch\ntorch.load(path)",
        "import torch as t\nt.load(path, weights_only=False)",
        "from torch import load as fetch\nfetch(path)",
        "import torch\ntorch.jit.load(path)",
        "import torch\ntorch.save(x, path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "socket.bind('tcp://*:5555')",
        "socket.bind(f'tcp://0.0.0.0:{port}')",
        "AutoModel.from_pretrained(x, use_safetensors=True, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, use_safetensors=True, **{'trust_remote_code': True})",
        "AutoModelForCausalLM.from_pretrained(x)",
        "from transformers import OPTModel\nOPTModel.from_pretrained(x, use_safetensors=False)",
        "subprocess.run(x, shell=True)",
        "import os\nos.system(x)",
    ],
)
def test_the_check_sees_what_is_unsafe(source: str) -> None:
    assert list(faults(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path, weights_only=True)",
        "import yaml\nyaml.safe_load(text)",
        "import re\nre.compile(text)",
        "model.eval()",
        "AutoModel.from_pretrained(x, use_safetensors=True, trust_remote_code=False)",
        "AutoTokenizer.from_pretrained(x)",
        "import numpy as np\nnp.load(path)",
    ],
)
def test_the_check_lets_pass_what_is_safe(source: str) -> None:
    assert not list(faults(ast.parse(source)))


def test_by_default_a_server_is_for_this_machine_and_logs_no_prompts() -> None:
    server = ServerOptions()
    assert is_loopback(resolve_host(server.host))
    assert not server.insecure
    assert not server.log_requests
