"""``bench.sweep.environment``: what is recorded of the machine, and what is not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from bench.sweep import environment as facts


def test_the_facts_are_there_and_are_json() -> None:
    found = facts.environment()
    assert set(found) == {"versions", "source", "machine", "commit", "state", "variables"}
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["torch"]
    assert found["machine"]["threads"] >= found["machine"]["usable"] >= 1
    assert len(found["state"]["load_average"]) == 3
    assert facts.environment()["machine"] == found["machine"]


def test_a_package_that_is_not_there_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "PACKAGES", ("torch", "no-such-package"))
    assert facts.versions()["no-such-package"] is None


def test_gpus_are_told_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda number: number)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: f"GPU {handle}")
    memory = SimpleNamespace(total=80 << 30)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: memory)
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "570.1")
    found = facts.machine()
    gpus = [{"name": f"GPU {n}", "memory_bytes": 80 << 30} for n in (0, 1)]
    assert (found["gpus"], found["driver"]) == (gpus, "570.1")

    def fails(*_: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)

    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", fails)
    assert facts.machine()["gpus"] == []
    monkeypatch.setattr(pynvml, "nvmlInit", fails)
    assert facts.machine()["driver"] is None


def test_the_source_is_known_by_its_contents(tmp_path: Path) -> None:
    (tmp_path / "pdv_mp").mkdir()
    (tmp_path / "tests").mkdir()
    file = tmp_path / "pdv_mp" / "one.py"
    file.write_text("1", encoding="utf-8")
    before = facts.source_digest(tmp_path)
    (tmp_path / "tests" / "two.py").write_text("2", encoding="utf-8")
    (tmp_path / "pdv_mp" / "notes.txt").write_text("3", encoding="utf-8")
    assert facts.source_digest(tmp_path) == before
    file.write_text("2", encoding="utf-8")
    changed = facts.source_digest(tmp_path)
    assert changed != before
    (tmp_path / "pdv_mp" / "kernels.cpp").write_text("3", encoding="utf-8")
    assert facts.source_digest(tmp_path) != changed


def test_a_commit_is_dirty_when_the_program_differs_from_it(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        name = ("-c", "user.name=x", "-c", "user.email=x", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", tmp_path, *name, *arguments], check=True, capture_output=True)

    assert facts.commit(tmp_path) is None
    git("init")
    assert facts.commit(tmp_path) is None
    (tmp_path / "pdv_mp").mkdir()
    (tmp_path / "pdv_mp" / "one.py").write_text("1", encoding="utf-8")
    git("add", ".")
    git("commit", "-m", "one")
    clean = facts.commit(tmp_path)
    assert clean is not None
    assert len(clean["id"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "notes.md").write_text("not the program", encoding="utf-8")
    assert facts.commit(tmp_path) == clean
    (tmp_path / "pdv_mp" / "two.py").write_text("2", encoding="utf-8")
    assert facts.commit(tmp_path) == {**clean, "dirty": True}


def test_no_secret_is_recorded() -> None:
    environment = {
        "PDV_TOKEN": "x1",
        "PDV_TOKEN_FILE": "/run/token",
        "HF_HUB_OFFLINE": "1",
        "HF_TOKEN": "x2",
        "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "0",
        "AWS_SECRET_ACCESS_KEY": "x3",
        "PDV_API_KEY": "x4",
    }
    assert facts.variables(environment) == {
        "CUDA_VISIBLE_DEVICES": "0",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
        "PDV_API_KEY": facts.REDACTED,
        "PDV_TOKEN": facts.REDACTED,
        "PDV_TOKEN_FILE": "/run/token",
    }


def test_the_command_is_recorded_without_secrets() -> None:
    given = ["/home/me/bin/pdv-bench", "sweep", "--tokens", "64", "--api-key", "x", "--seed=1"]
    assert facts.command_line(given) == [
        *("pdv-bench", "sweep", "--tokens", "64", "--api-key", facts.REDACTED, "--seed=1")
    ]
    assert facts.command_line(["bench/cli.py", "sweep"]) == ["pdv-bench", "sweep"]
    assert facts.command_line(["a", "--option", "auth-token=x"])[-1] == "auth-token=(redacted)"
    assert facts.command_line(["a", "--option", "token-file=x"])[-1] == "token-file=x"
