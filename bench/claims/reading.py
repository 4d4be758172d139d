"""Reads ``claims.yaml`` and the documents, and compares the two."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from bench.claims.records import SCHEMA_VERSION, Claim, Claims, Exclusion
from launcher.yaml_file import read_yaml_map
from pdv_mp.config import ConfigError

HERE = Path(__file__).parent
CLAIMS = HERE / "claims.yaml"
SOURCES = HERE / "sources"

_DIGIT = re.compile(r"\d")
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_ORDINAL = re.compile(r"^\s*(?:#+ +)?(?:\*\*)?\d+\.\s")
"""The number of an entry of a list, or of a heading."""


class ClaimsError(ValueError):
    """The list of claims cannot be read; the message names file and entry."""


def read_claims(path: Path = CLAIMS) -> Claims:
    """The list of claims. Raises ClaimsError that names the entry that is wrong."""
    try:
        document = read_yaml_map(path, "the list of claims", "documents, claims and excluded lines")
    except ConfigError as error:
        raise ClaimsError(str(error)) from error
    if document.get("schema_version") != SCHEMA_VERSION:
        raise ClaimsError(
            f"{path} has schema version {document.get('schema_version')}, and this program reads "
            f"version {SCHEMA_VERSION}"
        )
    entries = {
        name: [_entry(path, name, number, entry, kind) for number, entry in _listed(document, name)]
        for name, kind in (("claims", Claim), ("excluded", Exclusion))
    }
    try:
        found = msgspec.convert({**document, "claims": [], "excluded": []}, Claims)
    except msgspec.ValidationError as error:
        raise ClaimsError(f"{path}: {error}") from error
    found = msgspec.structs.replace(found, **entries)
    _check(path, found)
    return found


def _listed(document: dict[str, Any], name: str) -> list[tuple[int, Any]]:
    value = document.get(name)
    return list(enumerate(value, 1)) if isinstance(value, list) else []


def _entry(path: Path, name: str, number: int, entry: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(entry, kind)
    except msgspec.ValidationError as error:
        label = entry.get("id") if isinstance(entry, dict) else None
        where = f"{name}, entry {number}" + (f" ({label})" if label else "")
        raise ClaimsError(f"{path}: {where}: {error}") from error


def _check(path: Path, found: Claims) -> None:
    ids: set[str] = set()
    for claim in found.claims:
        where = f"{path}: claim {claim.id}"
        if claim.id in ids:
            raise ClaimsError(f"{where} is there twice")
        ids.add(claim.id)
        for citation in claim.cited:
            if citation.document not in found.documents:
                raise ClaimsError(f"{where} cites {citation.document}, which is no document")
        pair = getattr(claim.judge, "pair", None)
        if pair is not None and pair not in found.pairs:
            raise ClaimsError(f"{where} is about the pair {pair}, which is not among the pairs")
        for low, high in _ranges(claim.judge):
            if low is None and high is None:
                raise ClaimsError(f"{where} has a range without ends")
            if low is not None and high is not None and low > high:
                raise ClaimsError(f"{where} has the range {low} to {high}")
    for exclusion in found.excluded:
        if exclusion.document not in found.documents:
            raise ClaimsError(
                f"{path}: lines of {exclusion.document} are excluded, which is no document"
            )


def _ranges(judge: Any) -> Iterator[tuple[float | None, float | None]]:
    for name in ("ratio", "slope", "rate"):
        found = getattr(judge, name, None)
        if found is not None:
            yield found
    yield from getattr(judge, "shares", {}).values()


class Documents:
    """The documents that claims are cited from."""

    def __init__(self, claims: Claims, folder: Path = SOURCES) -> None:
        self._claims = claims
        self._lines: dict[str, list[str]] = {}
        for name in claims.documents:
            try:
                text = (folder / name).read_text(encoding="utf-8")
            except OSError as error:
                raise ClaimsError(f"{folder / name}: {error.strerror}") from error
            self._lines[name] = text.split("\n")

    def line(self, document: str, number: int) -> str:
        """A line, from 1; empty if there is none."""
        lines = self._lines.get(document, [])
        return lines[number - 1] if 0 < number <= len(lines) else ""

    def problems(self) -> Iterator[str]:
        """In sentences: lines with a digit that are neither cited nor excluded, or both; numbers
        of a cited line that no citation has; figures that the cited line lacks; lines that are
        excluded for nothing."""
        cited = self._cited()
        excluded = {
            (exclusion.document, number)
            for exclusion in self._claims.excluded
            for number in exclusion.numbers
        }
        for document, lines in self._lines.items():
            for number, line in enumerate(lines, 1):
                place, where = (document, number), f"{document}:{number}"
                bare = self._bare(line)
                if place in excluded:
                    if place in cited:
                        yield f"{where} is cited and excluded"
                    if not _DIGIT.search(bare):
                        yield f"{where} is excluded and has no digit: {line.strip()}"
                elif place in cited:
                    left = set(_NUMBER.findall(_ORDINAL.sub("", bare))) - cited[place]
                    if left:
                        yield f"{where}: no claim has {', '.join(sorted(left))}: {line.strip()}"
                elif _DIGIT.search(bare):
                    yield f"{where} is neither cited nor excluded: {line.strip()}"
        yield from self._strangers()

    def _strangers(self) -> Iterator[str]:
        for claim in self._claims.claims:
            for citation in claim.cited:
                line = self.line(citation.document, citation.line)
                for figure in citation.figures:
                    if not re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", line):
                        yield f"claim {claim.id}: {citation.at} has no {figure}: {line.strip()}"

    def _cited(self) -> dict[tuple[str, int], set[str]]:
        found: dict[tuple[str, int], set[str]] = {}
        for claim in self._claims.claims:
            for citation in claim.cited:
                numbers = found.setdefault((citation.document, citation.line), set())
                for figure in citation.figures:
                    numbers.update(_NUMBER.findall(figure))
        return found

    def _bare(self, line: str) -> str:
        for name in self._claims.names:
            line = line.replace(name, "")
        return line
