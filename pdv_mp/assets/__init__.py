"""The shipped model pair and the held-out source files on which it is evaluated.

``README.md`` beside this file says what the models were trained on, and under which licence.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).resolve().parent
_HELD_OUT_SUFFIX = ".txt"


def verifier_path() -> Path:
    """The folder of the shipped verifier, a Hugging Face checkpoint with its tokenizer."""
    return _FOLDER / "verifier"


def draft_path() -> Path:
    """The folder of the shipped draft, with the verifier's tokenizer."""
    return _FOLDER / "draft"


def heldout_path() -> Path:
    """The folder of the held-out files, ``<module>.py.txt`` each."""
    return _FOLDER / "heldout"


def heldout_files() -> list[tuple[str, str]]:
    """The held-out files as (file name, text), sorted by name; neither model saw them."""
    paths = sorted(heldout_path().glob(f"*.py{_HELD_OUT_SUFFIX}"))
    return [
        (path.name[: -len(_HELD_OUT_SUFFIX)], path.read_bytes().decode("utf-8")) for path in paths
    ]


def heldout_prompts(count: int = 64, characters: int = 640) -> list[tuple[str, str]]:
    """``count`` prompts cut from the held-out files, as (name, text), always the same ones.

    Each starts at the beginning of a line and ends after about ``characters`` characters at the
    end of one (640 are about 190 tokens; single prompts differ by tens of percent). The name is
    the file's and the line's, ``textwrap.py:121``. The prompts take turns over the files and lie
    evenly spread in each; they overlap where more are asked for than fit. Raises ``ValueError``
    where ``count`` or ``characters`` is not positive.
    """
    if count < 1 or characters < 1:
        raise ValueError(
            f"count and characters must be positive, not {count} and {characters}: ask for at "
            "least one prompt of one character"
        )
    files = heldout_files()
    prompts: list[tuple[str, str]] = []
    for index in range(count):
        turn, which = divmod(index, len(files))
        turns = (count - which + len(files) - 1) // len(files)
        name, text = files[which]
        last_start = max(0, len(text) - 2 * characters)
        wanted = last_start * turn // max(1, turns - 1) if turns > 1 else last_start // 2
        start = text.rfind("\n", 0, wanted) + 1
        end = text.find("\n", min(len(text), start + characters))
        line = text.count("\n", 0, start) + 1
        prompts.append((f"{name}:{line}", text[start : len(text) if end < 0 else end]))
    return prompts
