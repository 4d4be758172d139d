"""The golden vectors: current, complete, and read and written by the clients here."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgpack
import pytest

from pdv_mp.wire import client_messages, protocol
from pdv_mp.wire.protocol import ProtocolError
from pdv_mp.wire.vectors import document

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docs" / "protocol_vectors.json"
NODE = ROOT / "examples" / "node"
FOUND = json.loads(FILE.read_text(encoding="utf-8"))
BY_SENDER: dict[str, list[dict[str, Any]]] = {
    sender: [vector for vector in FOUND["vectors"] if vector["from"] == sender]
    for sender in ("client", "server")
}
ANSWERS = {
    *("welcome", "accepted", "tokens", "done", "error", "pong", "alive", "info", "tokenized"),
    *("detokenized", "description"),
}


def test_the_file_is_current() -> None:
    assert document() == FOUND


def test_every_message_has_a_vector() -> None:
    types = {
        sender: {vector["message"]["type"] for vector in vectors}
        for sender, vectors in BY_SENDER.items()
    }
    assert types["client"] == set(client_messages._PARSERS)
    assert types["server"] == ANSWERS
    fields = {key for vector in BY_SENDER["client"] for key in vector["message"]}
    assert set(protocol._DEFAULTS) <= fields, "every parameter of generate"


@pytest.mark.parametrize("vector", BY_SENDER["client"], ids=lambda vector: vector["name"])
def test_a_clients_message_is_accepted_and_written_so(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["hex"])
    message = client_messages.decode_client(frame)
    assert type(message).__name__.lower() == vector["message"]["type"]
    assert msgpack.packb(vector["message"]) == frame


@pytest.mark.parametrize("vector", BY_SENDER["server"], ids=lambda vector: vector["name"])
def test_a_servers_message_is_read(vector: dict[str, Any]) -> None:
    assert protocol.decode_server(bytes.fromhex(vector["hex"])) == vector["message"]


@pytest.mark.parametrize("vector", FOUND["refused"], ids=lambda vector: vector["name"])
def test_a_bad_frame_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError) as refused:
        client_messages.decode_client(bytes.fromhex(vector["hex"]))
    assert refused.value.code.value == vector["code"]


def test_node_reads_and_writes_the_same_bytes() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if not (NODE / "node_modules" / "@msgpack").is_dir():
        pytest.skip("run npm install in examples/node first")
    done = subprocess.run(
        [node, "check_vectors.mjs", str(FILE)], cwd=NODE, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(FOUND['vectors'])} messages, 0 differences\n"
