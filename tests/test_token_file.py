"""The file with a token: what is in it, and which files are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pdv_mp.config import ConfigError
from pdv_mp.token_file import read_token, token_path

SECRET = "geheim-0123456789"


def written(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "token"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("content", "token"),
    [
        (SECRET, SECRET),
        (SECRET + "\n", SECRET),
        (SECRET + "\r\n", SECRET),
        ("  two words are fine ", "  two words are fine "),
        ("0123456789abcdeü\n", "0123456789abcdeü"),
    ],
)
def test_one_line_is_the_token(tmp_path: Path, content: str, token: str) -> None:
    assert read_token(written(tmp_path, content.encode())) == token


def test_a_link_to_a_private_file_will_do(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(written(tmp_path, SECRET.encode(), 0o400))
    assert read_token(link) == SECRET


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b" \t \n", "is empty"),
        (b"geheim\n", "holds 6 characters; a token has at least 16"),
        (SECRET.encode() + b"\n\n", "must hold one line"),
        (SECRET.encode() + b"\nmore\n", "must hold one line"),
        (SECRET.encode() + b"\0", "must hold one line"),
        (b"\xef\xbb\xbf" + SECRET.encode(), "must hold one line"),
        (SECRET.encode() + b"\xff", "is not UTF-8"),
        (SECRET.encode() * 1000, "is longer than 4096 bytes"),
    ],
)
def test_anything_else_is_refused_and_not_shown(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_token(path)
    assert str(caught.value).startswith(f"--token-file {path} ")
    assert "geheim" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o601, 0o777])
def test_a_file_for_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path, SECRET.encode(), mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.; run chmod 600 {path}"):
        read_token(path)


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path in (tmp_path, pipe, Path("/dev/zero")):
        with pytest.raises(ConfigError, match="is not a regular file"):
            read_token(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_token(tmp_path / "gone")
    with pytest.raises(ConfigError, match="cannot be read: "):
        read_token(Path("a\0b"))


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, SECRET.encode())
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        read_token(path)


def test_a_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert token_path("token") == tmp_path / "token"
    assert token_path("~/token") == Path("/home/someone/token")
    with pytest.raises(ConfigError, match="--token-file is empty"):
        token_path("")
