"""The file with the key that HTTP clients must send."""

from __future__ import annotations

from pathlib import Path

from pdv_mp.config import ConfigError
from pdv_mp.token_file import read_token, token_path


def api_key_path(text: str) -> Path:
    """The absolute path of an ``--api-key-file``. Raises ConfigError if it is empty."""
    try:
        return token_path(text)
    except ConfigError as error:
        raise _renamed(error) from None


def read_api_key(file: str) -> str:
    """The key in a file, which must be as a ``--token-file`` must be. Raises ConfigError."""
    try:
        return read_token(token_path(file))
    except ConfigError as error:
        raise _renamed(error) from None


def _renamed(error: ConfigError) -> ConfigError:
    text = str(error).replace("--token-file", "--api-key-file").replace("a token", "a key")
    return ConfigError(text.replace("one token", "one key"))
