"""Model pairs: from names in a file to folders with weights, and their fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench.results.records import Pair
from bench.sweep.errors import PlanError
from launcher.yaml_file import read_yaml_map
from pdv_mp import assets
from pdv_mp.config import ConfigError
from pdv_mp.model.errors import ModelError
from pdv_mp.model.loading import resolve_model, weight_files

SHIPPED = "shipped"
"""The name of the pair that comes with the package."""

_KEYS = ("verifier", "draft")


@dataclass(frozen=True, slots=True)
class ModelPair:
    """A pair that can be served: its record, fingerprints included, and its local folders."""

    record: Pair
    verifier: Path
    draft: Path

    @property
    def name(self) -> str:
        """As in the file of pairs."""
        return self.record.name


def read_pairs(path: Path | None) -> list[Pair]:
    """The pairs of a YAML file, in its order; without a file the shipped one.

    A line is ``shipped:`` or ``NAME: {verifier: …, draft: …}``, each a folder or a hub id. Raises
    PlanError, one sentence that names file and line or pair.
    """
    if path is None:
        return [Pair(name=SHIPPED)]
    try:
        document = read_yaml_map(path, "--pairs", "pairs by name")
    except ConfigError as error:
        raise PlanError(str(error)) from error
    if not document:
        raise PlanError(f"--pairs {path} names no pair")
    return [_pair(path, name, value) for name, value in document.items()]


def _pair(path: Path, name: Any, value: Any) -> Pair:
    where = f"--pairs {path}: {name!r}"
    if not isinstance(name, str) or not name.strip():
        raise PlanError(f"{where} is no name of a pair; put it in quotes")
    if name == SHIPPED:
        if value is not None:
            raise PlanError(f"{where} is the pair that comes with the package; name yours else")
        return Pair(name=SHIPPED)
    if not isinstance(value, dict) or set(value) != set(_KEYS):
        raise PlanError(
            f"{where} must be a map of verifier and draft, as in "
            f"{name}: {{verifier: FOLDER, draft: FOLDER}}"
        )
    for key in _KEYS:
        if not isinstance(value[key], str) or not value[key]:
            raise PlanError(f"{where}: {key} must be a folder or a hub id, not {value[key]!r}")
    return Pair(name=name, model=value["verifier"], draft_model=value["draft"])


def find_pairs(pairs: Sequence[Pair]) -> list[ModelPair]:
    """The pairs with their folders and fingerprints; hub ids are downloaded, or taken from the
    cache. Raises PlanError if there is one that cannot be had."""
    found = []
    for pair in pairs:
        verifier = _folder(pair, pair.model, assets.verifier_path())
        draft = _folder(pair, pair.draft_model, assets.draft_path())
        found.append((pair, verifier, draft))
    return [
        ModelPair(
            msgspec.structs.replace(
                pair, model_fingerprint=fingerprint(verifier), draft_fingerprint=fingerprint(draft)
            ),
            verifier,
            draft,
        )
        for pair, verifier, draft in found
    ]


def _folder(pair: Pair, name: str | None, shipped: Path) -> Path:
    try:
        return resolve_model(str(shipped) if name is None else name)
    except ModelError as error:
        raise PlanError(
            f"the pair {pair.name!r} cannot be had: {str(error).rstrip('.')}; `pdv-bench inflate` "
            "makes a stand-in of a big model's true shape from the shipped pair"
        ) from error


def fingerprint(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights, as ``sha256sum model.safetensors`` says it. Of several
    files it is that of their sums: ``sha256sum *.safetensors | sha256sum``.

    Raises PlanError if a file cannot be read.
    """
    files = sorted(weight_files(folder), key=lambda path: path.name)
    sums = [(path.name, _sha256(path)) for path in files]
    if len(sums) == 1:
        return sums[0][1]
    return hashlib.sha256("".join(f"{text}  {name}\n" for name, text in sums).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise PlanError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
