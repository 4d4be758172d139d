"""Which addresses there are for clients, who can reach them, and unix sockets' modes."""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

import pytest
import zmq

from pdv_mp.binding import bind_ipc, check_exposure, is_loopback, resolve_host, tcp_endpoint
from pdv_mp.config import ConfigError, ServerOptions


@pytest.mark.parametrize(
    ("host", "address", "loopback"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.8.9.1", "127.8.9.1", True),
        ("127.1", "127.0.0.1", True),
        ("localhost", "127.0.0.1", True),
        ("::1", "::1", True),
        ("[::1]", "::1", True),
        ("0:0:0:0:0:0:0:1", "::1", True),
        ("::ffff:127.0.0.1", "127.0.0.1", True),
        ("0.0.0.0", "0.0.0.0", False),
        ("0", "0.0.0.0", False),
        ("*", "0.0.0.0", False),
        ("::", "::", False),
        ("::ffff:0.0.0.0", "0.0.0.0", False),
        ("10.1.2.3", "10.1.2.3", False),
        ("fe80::1", "fe80::1", False),
    ],
)
def test_addresses_are_read_before_they_are_judged(host: str, address: str, loopback: bool) -> None:
    assert resolve_host(host) == address
    assert is_loopback(address) is loopback
    server = ServerOptions(host=host)
    if loopback:
        check_exposure(server)
        return
    with pytest.raises(ConfigError, match=r"--token-file, .* or --insecure ") as caught:
        check_exposure(server)
    assert f"--host {host} " in str(caught.value)
    check_exposure(dataclasses.replace(server, insecure=True))
    check_exposure(dataclasses.replace(server, token_file="/some/file"))


def test_a_name_is_what_it_resolves_to(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "inside": ["127.0.1.1"],
        "outside": ["2001:db8::7", "192.0.2.7"],
        "six": ["2001:db8::7"],
    }

    def look_up(name: str, port: int, **options: object) -> list[tuple[object, ...]]:
        if name not in known:
            raise OSError("unknown")
        return [(10 if ":" in item else 2, 1, 6, "", (item, port)) for item in known[name]]

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    assert resolve_host("inside") == "127.0.1.1"
    assert resolve_host("outside") == "192.0.2.7"
    assert resolve_host("six") == "2001:db8::7"
    check_exposure(ServerOptions(host="inside"))
    with pytest.raises(ConfigError, match="other machines"):
        check_exposure(ServerOptions(host="outside"))


@pytest.mark.parametrize("host", ["", " ", "no such name", "a" * 300, "caf\udce9", "tcp://x", "[]"])
def test_what_is_no_address_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="neither an IP address nor a name"):
        resolve_host(host)


def test_endpoints() -> None:
    assert tcp_endpoint("127.0.0.1", 5555) == "tcp://127.0.0.1:5555"
    assert tcp_endpoint("::1", 0) == "tcp://[::1]:*"


def test_unix_sockets_are_private_whatever_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as bound:
            endpoint = bind_ipc(bound, tmp_path / "socket")
            assert endpoint == f"ipc://{tmp_path}/socket"
            assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == 0o600
        assert os.umask(0) == 0
    finally:
        os.umask(previous)
