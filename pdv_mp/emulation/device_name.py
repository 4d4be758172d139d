"""``emulated:FILE#N``, what ``--device`` and topology files call an emulated device."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pdv_mp.config import ConfigError

PREFIX = "emulated:"

BY_REPLICA = "replica"
"""The number that stands for a device of each replica's own."""

MAX_DEVICES = 64

_NAME = re.compile(r"emulated:(?P<file>[^#]*)(?:#(?P<number>\d{1,2}|replica))?")
_SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "emulated"


@dataclass(frozen=True, slots=True)
class EmulatedName:
    """``file``: of the cost table, empty for that of ``--device``. ``number``: which of the devices
    that have this table, or ``replica`` for one of each replica's own."""

    file: str
    number: str = "0"

    @classmethod
    def parse(cls, text: str) -> EmulatedName | None:
        """None if the text names no emulated device. Raises ConfigError for one that is wrong."""
        if not text.startswith(PREFIX):
            return None
        match = _NAME.fullmatch(text)
        number = "0" if match is None else match["number"] or "0"
        if match is None or (number != BY_REPLICA and int(number) >= MAX_DEVICES):
            raise ConfigError(
                f"{text!r} is not an emulated device; use emulated:FILE, emulated:FILE#N with N "
                f"below {MAX_DEVICES}, or emulated:FILE#{BY_REPLICA}"
            )
        return cls(match["file"], number)

    def __str__(self) -> str:
        return f"{PREFIX}{self.file}#{self.number}"

    def index(self, replica: int) -> int:
        """The number of the device on which a worker of this replica computes."""
        return replica if self.number == BY_REPLICA else int(self.number)


def is_emulated(device: str) -> bool:
    """Whether ``--device`` names an emulated one."""
    return device.startswith(PREFIX)


def table_path(file: str) -> Path:
    """The cost table of a file's name, or of the name of one that is shipped.

    Raises ConfigError, which names the shipped ones, if there is neither.
    """
    path = Path(file).expanduser()
    shipped = _SHIPPED / f"{file}.json"
    if path.is_file():
        return path.resolve()
    if shipped.parent == _SHIPPED and shipped.is_file():
        return shipped
    raise ConfigError(
        f"--device {PREFIX}{file}: there is no such file, and the shipped cost tables are "
        f"{', '.join(shipped_tables())}"
    )


def shipped_tables() -> list[str]:
    """Names of the cost tables that are shipped."""
    return sorted(path.stem for path in _SHIPPED.glob("*.json"))
