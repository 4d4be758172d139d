"""The file that holds a server's token, which clients must send in ``hello``."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pdv_mp.config import ConfigError

MIN_TOKEN_CHARACTERS = 16
MAX_TOKEN_BYTES = 4096


def token_path(text: str) -> Path:
    """The absolute path of a ``--token-file``. Raises ConfigError if it is empty."""
    if not text:
        raise ConfigError("--token-file is empty; give the path of a file with one token")
    return Path(os.path.abspath(os.path.expanduser(text)))


def read_token(path: Path) -> str:
    """The token in a file: its one line of UTF-8 text.

    Raises ConfigError for a file that cannot be read, is not a regular one, may be read or written
    by anyone but its owner, belongs to another user, or holds anything but one line of
    :data:`MIN_TOKEN_CHARACTERS` or more printable characters. No message shows what is in it.
    """
    try:
        # A pipe must not block the start; whether it is one is seen below.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"--token-file {path} cannot be read: {reason}") from error
    try:
        _check_status(path, os.fstat(fd))
        content = os.read(fd, MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"--token-file {path} cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)
    if len(content) > MAX_TOKEN_BYTES:
        raise ConfigError(f"--token-file {path} is longer than {MAX_TOKEN_BYTES} bytes")
    try:
        token = content.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"--token-file {path} is not UTF-8 text") from None
    token = token.removesuffix("\n").removesuffix("\r")
    if not token.strip():
        raise ConfigError(f"--token-file {path} is empty; write one line with a token into it")
    if not token.isprintable():
        raise ConfigError(f"--token-file {path} must hold one line of printable characters")
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise ConfigError(
            f"--token-file {path} holds {len(token)} characters; a token has at least "
            f"{MIN_TOKEN_CHARACTERS}"
        )
    return token


def _check_status(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"--token-file {path} is not a regular file")
    if status.st_uid not in (os.geteuid(), 0):
        raise ConfigError(f"--token-file {path} belongs to another user; use a file of your own")
    if status.st_mode & 0o077:
        raise ConfigError(
            f"--token-file {path} can be used by others (mode {stat.S_IMODE(status.st_mode):04o}); "
            f"run chmod 600 {path}"
        )
