"""The training text: the interpreter's own standard library, without the held-out modules.

A held-out module is kept from training three ways: its own file is not read; files named after it
(its tests, its accelerator's wrapper, copies elsewhere) are dropped by name; and any file that
shares a passage of ``PASSAGE_WORDS`` consecutive words with it is dropped by content.
"""

from __future__ import annotations

import random
import re
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_MODULES = (
    "bisect",
    "calendar",
    "cmd",
    "colorsys",
    "csv",
    "filecmp",
    "fnmatch",
    "fractions",
    "getopt",
    "graphlib",
    "heapq",
    "netrc",
    "queue",
    "sched",
    "shlex",
    "statistics",
    "string",
    "textwrap",
)
PASSAGE_WORDS = 24
MINIMUM_BYTES = 200
MAXIMUM_TABLE_SHARE = 0.3

_SKIPPED_DIRECTORIES = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "pydoc_data", "data", "lib-dynload"}
)
_TEST_DIRECTORIES = frozenset({"test", "tests", "idle_test"})
_TABLE_CHARACTERS = re.compile(r"\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|0x[0-9a-fA-F]+|[0-9]")


@dataclass(frozen=True)
class Document:
    """One source file: ``name`` is its path below the standard library, with forward slashes."""

    name: str
    text: str

    @property
    def is_test(self) -> bool:
        """Whether the file belongs to a test package."""
        return not _TEST_DIRECTORIES.isdisjoint(self.name.split("/")[:-1])


@dataclass(frozen=True)
class Selection:
    """The documents that are trained on, and why each other file was left out (name, reason)."""

    documents: tuple[Document, ...]
    dropped: tuple[tuple[str, str], ...]


def standard_library() -> Path:
    """The folder of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def read_held_out(library: Path) -> tuple[Document, ...]:
    """The held-out modules as this interpreter has them, in the order of ``HELD_OUT_MODULES``.

    Raises ``FileNotFoundError`` where the interpreter lacks one of them.
    """
    return tuple(
        Document(f"{name}.py", (library / f"{name}.py").read_text(encoding="utf-8"))
        for name in HELD_OUT_MODULES
    )


def is_named_after_held_out(name: str) -> bool:
    """Whether the path names a held-out module, its tests, or a private part or package of it."""
    parts = name[: -len(".py")].split("/") if name.endswith(".py") else name.split("/")
    for part in parts:
        stem = part.strip("_")
        if stem.startswith("test_"):
            stem = stem[len("test_") :]
        stem = stem.removesuffix("_tests")
        if stem in HELD_OUT_MODULES:
            return True
    return False


def passages(text: str) -> set[int]:
    """Hashes of every run of ``PASSAGE_WORDS`` consecutive whitespace-separated words."""
    words = text.split()
    return {
        hash(tuple(words[start : start + PASSAGE_WORDS]))
        for start in range(len(words) - PASSAGE_WORDS + 1)
    }


def table_share(text: str) -> float:
    """Share of the characters that are digits, hexadecimal escapes or outside ASCII."""
    digits = sum(len(match.group()) for match in _TABLE_CHARACTERS.finditer(text))
    foreign = sum(1 for character in text if ord(character) > 127)
    return (digits + foreign) / max(1, len(text))


def reason_to_drop(name: str, text: str | None, held_out_passages: set[int]) -> str | None:
    """Why a file is not trained on, or None; ``text`` is None where it is not UTF-8."""
    if is_named_after_held_out(name):
        return "named after a held-out module"
    if text is None:
        return "not UTF-8"
    if len(text) < MINIMUM_BYTES:
        return "nearly empty"
    if name.split("/")[-1].startswith("_sysconfigdata") or table_share(text) > MAXIMUM_TABLE_SHARE:
        return "a data table"
    if not held_out_passages.isdisjoint(passages(text)):
        return "shares a passage with a held-out file"
    return None


def select_documents(library: Path, held_out: Sequence[Document]) -> Selection:
    """Read the library in the order of its sorted paths and leave out what is not trained on.

    ``held_out`` are the texts against which passages are compared: those that ship in the assets
    and, where the interpreter's own differ, those too.
    """
    forbidden: set[int] = set()
    for document in held_out:
        forbidden |= passages(document.text)
    kept: list[Document] = []
    dropped: list[tuple[str, str]] = []
    seen: set[str] = set()
    paths = (path for path in library.rglob("*.py") if path.is_file())
    for name, path in sorted((path.relative_to(library).as_posix(), path) for path in paths):
        if not _SKIPPED_DIRECTORIES.isdisjoint(name.split("/")):
            continue
        try:
            text: str | None = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            text = None
        reason = reason_to_drop(name, text, forbidden)
        if reason is None and text in seen:
            reason = "a copy of another file"
        if reason is not None or text is None:
            dropped.append((name, reason or "not UTF-8"))
            continue
        seen.add(text)
        kept.append(Document(name, text))
    return Selection(tuple(kept), tuple(dropped))


def training_order(documents: Iterable[Document], seed: int) -> list[Document]:
    """The stream of one epoch: library files twice, test files once, each pass shuffled."""
    everything = list(documents)
    library_only = [document for document in everything if not document.is_test]
    generator = random.Random(seed)
    generator.shuffle(everything)
    generator.shuffle(library_only)
    stream = everything + library_only
    generator.shuffle(stream)
    return stream
