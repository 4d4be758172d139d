"""``pdv-bench peers``: its programs, what it refuses, and what cannot be installed."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tiny_model
import torch
from click.testing import CliRunner, Result
from safetensors.numpy import save_file
from safetensors.torch import load_file

from bench.cli import main
from bench.peers.engine import Engine, program_command
from bench.peers.environments import STAMP, install, is_installed, python_of
from bench.peers.errors import PeerError
from bench.peers.programs.gguf_files import _tensors
from bench.peers.programs.peer import Setting
from bench.peers.records import PeersFolder
from bench.peers.registry import chosen, peers
from pdv_mp import assets

SECONDS = 120.0
SETTING = Setting("", "", "server", 1, 4, 64, 4, "")


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["peers", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engines", "nobody"], "there is no peer 'nobody'; there are pdv_mp, "),
        (["--engines", "transformers:fast"], "transformers has no mode 'fast'; it has plain, "),
        (["--engines", "url"], "the peer url needs --url"),
        (["--workloads", "128"], "'128' is not PROMPT+OUTPUT, such as 128+64"),
        (["--workloads", "8+1"], "two new tokens or more"),
        (["--agreement", "1.5"], "an agreement is between 0 and 1"),
        (["--rounds", "1,2"], "2 numbers for 3 concurrencies"),
        (["--concurrency", "0"], "has a number below 1"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = command(*arguments, "--output", tmp_path / "results", "--folder", tmp_path / "peers")
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())


def test_a_pair_without_weights_is_one_sentence(tmp_path: Path) -> None:
    done = command("--pair", "empty", tmp_path, tmp_path, "--output", tmp_path / "results")
    assert done.exit_code == 2
    assert str(tmp_path) in done.output
    assert "Traceback" not in done.output


def test_a_folder_without_results_has_no_report(tmp_path: Path) -> None:
    done = command("--report-only", "--output", tmp_path)
    assert done.exit_code == 2
    assert "holds no comparison of peers" in done.output


def test_every_peer_says_what_it_is() -> None:
    assert next(iter(peers())) == "pdv_mp"
    for name, (module, peer) in peers().items():
        assert peer.name == name
        assert peer.modes
        assert callable(peer.load)
        assert set(peer.most) <= set(peer.modes)
        assert all(">" in text or "==" in text for text in peer.requirements), module
    names = [choice.name for choice in chosen(["transformers", "pdv_mp:auto"])]
    assert names == ["transformers:plain", "transformers:assistant_model", "pdv_mp:auto"]


def test_what_is_not_installed_says_how(tmp_path: Path) -> None:
    _, peer = peers()["openvino-genai"]
    with pytest.raises(PeerError, match="pdv-bench peers --setup --engines openvino-genai"):
        python_of(peer, tmp_path)
    assert python_of(peers()["transformers"][1], tmp_path) == sys.executable


def test_a_peer_that_cannot_be_installed_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Looking\necho ERROR: No space left\necho bye\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    done = command("--setup", "--engines", "llama.cpp", "--folder", tmp_path / "peers")
    assert done.exit_code == 1
    assert "llama.cpp: cannot be installed: No space left" in done.output


@pytest.mark.slow
def test_pips_reason_is_given(tmp_path: Path) -> None:
    _, peer = peers()["llama.cpp"]
    wrong = replace(peer, requirements=(str(tmp_path / "nothing-1.0-py3-none-any.whl"),))
    with pytest.raises(PeerError, match=r"cannot be installed: .*nothing-1\.0"):
        install(wrong, tmp_path / "peers", (), lambda text: None)
    assert not is_installed(wrong, tmp_path / "peers")


def test_an_environment_for_other_requirements_is_none(tmp_path: Path) -> None:
    _, peer = peers()["llama.cpp"]
    (tmp_path / peer.name).mkdir()
    (tmp_path / peer.name / STAMP).write_text("xllamacpp<1\n")
    assert not is_installed(peer, tmp_path)


class Completions(BaseHTTPRequestHandler):
    """Counts up from the last id of a prompt."""

    says_ids = True

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        first = body["prompt"][-1] + 1
        ids = list(range(first, first + body["max_tokens"]))
        choice = {"text": "", "token_ids": ids if self.says_ids else None}
        self._answer({"choices": [choice], "usage": {"completion_tokens": len(ids)}})

    def _answer(self, found: object) -> None:
        data = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Completions) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{found.server_port}/v1"
        finally:
            found.shutdown()
            thread.join()


@pytest.mark.parametrize("says_ids", [True, False])
def test_any_openai_compatible_server(
    tmp_path: Path, server: str, says_ids: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Completions, "says_ids", says_ids)
    program = program_command(sys.executable, "openai_url")
    with Engine(program, {}, tmp_path / "log") as engine:
        engine.load(replace(SETTING, url=server), SECONDS)
        found = engine.generate([[1, 2], [7]], 3, SECONDS)
        assert found.ids == ([[3, 4, 5], [8, 9, 10]] if says_ids else [])
        assert found.tokens == (None if says_ids else 6)
        assert found.seconds > 0


def test_a_server_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    program = program_command(sys.executable, "openai_url")
    with (
        Engine(program, {}, tmp_path / "log") as engine,
        pytest.raises(PeerError, match=r"URLError: .*refused"),
    ):
        engine.load(replace(SETTING, url="http://127.0.0.1:9/v1"), SECONDS)


def test_gguf_tensors_have_llama_cpps_names_and_order(tmp_path: Path) -> None:
    rows, columns, heads = 8, 3, 2
    query = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    other = np.ones((4, columns), np.float32)
    save_file(
        {
            "model.embed_tokens.weight": other,
            "model.layers.3.self_attn.q_proj.weight": query,
            "model.layers.3.mlp.down_proj.weight": other,
        },
        tmp_path / "model.safetensors",
    )
    config = {"num_attention_heads": heads, "num_key_value_heads": 1}
    found = dict(_tensors(tmp_path, config))
    assert set(found) == {"token_embd.weight", "blk.3.attn_q.weight", "blk.3.ffn_down.weight"}
    # Of a head with four elements, 0 and 2, 1 and 3 are rotated together.
    order = [0, 2, 1, 3, 4, 6, 5, 7]
    assert np.array_equal(found["blk.3.attn_q.weight"], query[order])


def test_bfloat16_weights_are_read_exactly(tmp_path: Path) -> None:
    config = json.loads((assets.draft_path() / "config.json").read_text())
    found = dict(_tensors(assets.draft_path(), config))
    assert found["token_embd.weight"].dtype == np.float32
    assert found["token_embd.weight"].shape == (4096, 128)
    exact = load_file(assets.draft_path() / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(torch.from_numpy(found["token_embd.weight"]), exact.float())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ours_and_transformers_on_a_tiny_pair(tmp_path: Path) -> None:
    pair = tiny_model.make_tiny_pair(tmp_path / "pair")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- peers begin -->\nold\n<!-- peers end -->\nafter\n")
    arguments = (
        *("--pair", "tiny", pair.verifier, pair.draft, "--engines", "pdv_mp,transformers"),
        *("--workloads", "24+12", "--concurrency", "1,3", "--rounds", "2", "--threads", "1"),
        *("--output", tmp_path / "results", "--folder", tmp_path / "peers", "--page", page),
    )
    done = command(*arguments)
    assert done.exit_code == 0, done.output
    folder = PeersFolder(tmp_path / "results")
    cells = folder.cells()
    assert folder.failures() == []
    assert {cell.engine for cell in cells} == set(folder.run().engines)
    assert {(cell.judged, cell.equal) for cell in cells} == {(1, 1), (3, 3)}
    assert "old" not in page.read_text()
    assert "ours, auto ÷ ours, plain" in page.read_text()
    assert (tmp_path / "peers.png").exists()
    assert command(*arguments).exit_code == 0
    assert folder.cells() == cells
