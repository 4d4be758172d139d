"""The pairs that are compared: a verifier of 111 million parameters, the shipped draft model.

The verifier is a stand-in made of the shipped one (docs/stand_ins.md), with noise until draft and
verifier agree as often as wanted.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.inflate.shapes import SHAPES
from bench.peers.errors import PeersError
from pdv_mp import assets

LIKE = "smollm-135m"
VOCABULARY = 4096
"""Of the shipped tokenizer, so that a big vocabulary is no part of the cost."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Folders of the two checkpoints, and where engines keep what they convert."""

    name: str
    verifier: Path
    draft: Path
    converted: Path


def standing_pair(folder: Path, agreement: float, say: Callable[[str], object]) -> Pair:
    """The pair of that greedy agreement below ``folder``, made if it is not there: in minutes.

    Raises PeersError if it cannot be made.
    """
    place = folder / f"agreement-{agreement:g}"
    pair = Pair(
        f"agreement {agreement:g}", place / "verifier", place / "draft", place / "converted"
    )
    try:
        if not pair.verifier.exists():
            say(f"making the pair of {pair.name} in {place}")
            place.mkdir(parents=True, exist_ok=True)
            _inflate(place, pair.verifier, agreement)
        if not pair.draft.exists():
            unfinished = place / ".draft.new"
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(assets.draft_path(), unfinished)
            unfinished.rename(pair.draft)
    except OSError as error:
        raise PeersError(f"the pair cannot be made: {error}") from error
    return pair


def shape() -> dict[str, object]:
    """The content of the verifier's config.json: 30 layers of 576 channels, 111 million
    parameters."""
    return {**SHAPES[LIKE].values, "vocab_size": VOCABULARY, "tie_word_embeddings": False}


def _inflate(place: Path, output: Path, agreement: float) -> None:
    config = place / "shape.json"
    config.write_text(json.dumps(shape(), indent=1), encoding="utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench.cli", "inflate", "--like", str(config)),
            *("--agreement", str(agreement), "--dtype", "float32", "--output", str(output)),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stdout.strip().splitlines() or ["pdv-bench inflate said nothing"]
        raise PeersError(f"the pair cannot be made: {lines[-1]}")
