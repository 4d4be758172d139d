"""README and docs are part of the product: their commands run, their tables are current."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.option_table import option_table

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECONDS = 110


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of a language; each must run by itself."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def run(command: list[str], folder: Path) -> None:
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"


@pytest.fixture
def default_port() -> None:
    """Skips where something else listens on the ports that the README's commands use."""
    for port in (5555, 8000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                pytest.skip(f"port {port} is in use")


def test_every_command_of_the_readme_runs(default_port: None, tmp_path: Path) -> None:
    found = blocks("bash")
    assert found
    for block in found:
        run(["bash", "-euo", "pipefail", "-c", block], tmp_path)


def test_every_program_of_the_readme_runs(tmp_path: Path) -> None:
    found = blocks("python")
    assert found
    for block in found:
        run([sys.executable, "-c", block], tmp_path)


def test_the_option_table_is_current() -> None:
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == option_table()


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_local_links_and_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    paths = re.findall(r"`((?:pdv_mp|launcher|gateway|bench|tests|docs)/[\w./-]*)`", text)
    for link in links:
        assert (page.parent / link).exists(), f"{page.name} links to {link}"
    for path in paths:
        assert (ROOT / path).exists(), f"{page.name} names {path}"
