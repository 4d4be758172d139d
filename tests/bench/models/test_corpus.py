from __future__ import annotations

from pathlib import Path

import pytest

from bench.models.corpus import (
    HELD_OUT_MODULES,
    PASSAGE_WORDS,
    Document,
    is_named_after_held_out,
    read_held_out,
    select_documents,
    standard_library,
    table_share,
    training_order,
)
from pdv_mp import assets


def write(library: Path, name: str, text: str) -> None:
    path = library / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def words(prefix: str, count: int) -> str:
    return " ".join(f"{prefix}{'abcdefghij'[n % 10]}{'klmnopqrst'[n // 10]}" for n in range(count))


@pytest.mark.parametrize(
    "name",
    [
        "textwrap.py",
        "test/test_textwrap.py",
        "test/string_tests.py",
        "distutils/cmd.py",
        "csv/__init__.py",
        "_queue.py",
    ],
)
def test_files_named_after_a_held_out_module_are_recognised(name: str) -> None:
    assert is_named_after_held_out(name)


@pytest.mark.parametrize("name", ["json/decoder.py", "asyncio/queues.py", "cmdline.py"])
def test_other_files_are_not(name: str) -> None:
    assert not is_named_after_held_out(name)


def test_selection_leaves_out_names_passages_copies_and_tables(tmp_path: Path) -> None:
    secret = words("secret", PASSAGE_WORDS + 5)
    held_out = Document("textwrap.py", f"start {secret} end")
    ordinary = words("ordinary", 60)
    write(tmp_path, "textwrap.py", ordinary + " named after it")
    write(tmp_path, "thief.py", f"{ordinary}\n        {secret}\n more")
    write(tmp_path, "a_module.py", ordinary)
    write(tmp_path, "b_copy.py", ordinary)
    write(tmp_path, "codes.py", "0x1F, 0x2A, " * 50)
    write(tmp_path, "site-packages/foreign.py", ordinary + " foreign")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9 " * 100)
    selection = select_documents(tmp_path, [held_out])
    assert [document.name for document in selection.documents] == ["a_module.py"]
    assert dict(selection.dropped) == {
        "textwrap.py": "named after a held-out module",
        "thief.py": "shares a passage with a held-out file",
        "b_copy.py": "a copy of another file",
        "codes.py": "a data table",
        "latin.py": "not UTF-8",
    }


def test_a_shorter_common_passage_is_allowed(tmp_path: Path) -> None:
    idiom = words("idiom", PASSAGE_WORDS - 1)
    write(tmp_path, "a_module.py", f"{words('own', 30)} {idiom} {words('rest', 30)}")
    held_out = Document("textwrap.py", f"before {idiom} after")
    assert len(select_documents(tmp_path, [held_out]).documents) == 1


def test_table_share_counts_escapes_and_digits() -> None:
    assert table_share("word " * 10) == 0.0
    assert table_share("0xFF") == 1.0


def test_shipped_held_out_files_are_the_listed_modules() -> None:
    names = [name for name, _ in assets.heldout_files()]
    assert names == [f"{module}.py" for module in sorted(HELD_OUT_MODULES)]


@pytest.mark.slow
def test_no_training_document_of_this_interpreter_repeats_a_held_out_line_run() -> None:
    """Checked by another measure than the selection's own: six equal non-trivial lines."""
    library = standard_library()
    shipped = [Document(name, text) for name, text in assets.heldout_files()]
    selection = select_documents(library, [*shipped, *read_held_out(library)])
    assert len(selection.documents) > 300

    def runs(text: str) -> set[tuple[str, ...]]:
        lines = [line.strip() for line in text.split("\n") if len(line.strip()) > 24]
        return {tuple(lines[start : start + 6]) for start in range(len(lines) - 5)}

    forbidden: set[tuple[str, ...]] = set()
    for document in shipped:
        forbidden |= runs(document.text)
    for document in selection.documents:
        assert not is_named_after_held_out(document.name)
        assert forbidden.isdisjoint(runs(document.text)), document.name


def test_training_order_repeats_the_library_and_is_deterministic() -> None:
    documents = [Document("a.py", "a"), Document("test/test_a.py", "t"), Document("b.py", "b")]
    order = training_order(documents, seed=3)
    assert sorted(document.name for document in order) == [
        "a.py",
        "a.py",
        "b.py",
        "b.py",
        "test/test_a.py",
    ]
    assert order == training_order(documents, seed=3)
