"""``pdv-bench``: a subcommand is imported when it is run, and says which packages it needs."""

from __future__ import annotations

import subprocess
import sys

from click.testing import CliRunner

from bench.cli import COMMANDS, main


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_help_names_all_and_imports_none() -> None:
    done = run(
        "import sys; from bench.cli import main; main(['-h'], standalone_mode=False);"
        "sys.exit(bool({'torch', 'numpy', 'scipy', 'msgspec'} & set(sys.modules)))"
    )
    assert done.returncode == 0, done.stderr
    for name, (_, text) in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert text in " ".join(done.stdout.split())


def test_what_is_not_installed_is_named() -> None:
    done = run(
        "import sys; sys.modules['msgspec'] = None; from bench.cli import main; main(['sweep'])"
    )
    assert done.returncode == 1
    assert done.stderr == "Error: pdv-bench sweep needs msgspec: pip install 'pdv-mp[bench]'\n"


def test_an_unknown_subcommand_is_refused() -> None:
    done = CliRunner().invoke(main, ["swep"])
    assert done.exit_code == 2
    assert "No such command 'swep'" in done.output
