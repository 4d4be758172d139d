"""What a real server lets others see and do: files, sockets, tokens, prompts in its output."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import tiny_arguments
from server_process import ServerProcess, run_launch
from tiny_model import TinyPair, make_tiny_pair

from pdv_mp import LLM, AsyncClient, Client, SamplingParams
from pdv_mp.client.client import ServerError, ServerUnreachable

Start = Callable[..., ServerProcess]
TOKEN = "a-token-of-this-test"
MARKER = "marker_of_this_prompt"


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "token"
    path.touch(0o600)
    path.write_text(TOKEN + "\n")
    return path


@pytest.fixture(scope="module")
def guarded(tiny_pair: TinyPair, token_file: Path, run_place: object) -> Iterator[ServerProcess]:
    """A server that asks for the token, and logs what it can."""
    arguments = tiny_arguments(tiny_pair, "--token-file", str(token_file), "--log-level", "debug")
    with ServerProcess(*arguments) as process:
        yield process.wait_ready()
        process.stop()


def listening(server: ServerProcess) -> tuple[set[str], set[str]]:
    """IP addresses on which the server's processes listen, and paths of their unix sockets."""
    addresses, paths = set(), set()
    for pid in server.pids.values():
        for connection in psutil.Process(pid).net_connections("all"):
            if connection.family == socket.AF_UNIX:
                paths.add(str(connection.laddr))
            elif connection.status in (psutil.CONN_LISTEN, psutil.CONN_NONE):
                addresses.add(connection.laddr.ip)
    return addresses, paths - {""}


def test_nothing_of_a_server_is_for_others(guarded: ServerProcess) -> None:
    addresses, paths = listening(guarded)
    assert addresses == {"127.0.0.1"}
    assert {str(Path(path).parent) for path in paths} == {str(guarded.run_dir)}
    assert {"client", "control"} < {Path(path).name for path in paths}
    own = guarded.run_dir.lstat()
    assert (stat.S_IMODE(own.st_mode), own.st_uid) == (0o700, os.geteuid())
    kinds = set()
    for path in guarded.run_dir.rglob("*"):
        status = path.lstat()
        kinds.add(stat.S_IFMT(status.st_mode))
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, os.geteuid()), path
    assert kinds == {stat.S_IFSOCK, stat.S_IFREG}


def test_run_directories_have_names_that_nobody_can_guess(
    guarded: ServerProcess, start_server: Start
) -> None:
    names = {guarded.run_dir.name, start_server().run_dir.name}
    assert len(names) == 2
    assert all(len(name.removeprefix("pdv-")) == 8 for name in names)


def readable_everywhere(server: ServerProcess) -> str:
    """Command lines and environments of all processes, the run directory's files, the output."""
    parts = [server.stderr(), json.dumps(server.ready)]
    for pid in server.pids.values():
        process = psutil.Process(pid)
        parts += [*process.cmdline(), repr(process.environ())]
    parts += [path.read_text() for path in server.run_dir.iterdir() if path.is_file()]
    return "\n".join(parts)


def test_the_token_is_needed_and_stays_a_secret(guarded: ServerProcess, token_file: Path) -> None:
    assert guarded.ready["token_file"] == str(token_file)
    for endpoint in (guarded.endpoint, guarded.ipc):
        with Client(endpoint, token=TOKEN) as client:
            stream = client.generate(MARKER, max_tokens=4, ignore_eos=True)
            assert len(stream.result().ids) == 4
            info = client.info()
            assert TOKEN not in json.dumps(info)
            assert info["configuration"]["server"]["token_file"] == str(token_file)
            assert client.detokenize(client.tokenize("def")) == "def"
        for token in (None, "not-the-right-token"):
            with Client(endpoint, token=token) as client:
                calls: list[Callable[[], Any]] = [
                    lambda: client.complete(MARKER),
                    client.info,
                    lambda: client.tokenize("def"),
                    lambda: client.detokenize([5]),
                ]
                for call in calls:
                    with pytest.raises(ServerError, match="unauthenticated") as caught:
                        call()
                    assert TOKEN not in str(caught.value)
                client.ping()
    seen = readable_everywhere(guarded)
    assert "gave a wrong token" in seen
    for secret in (TOKEN, "not-the-right-token", MARKER):
        assert secret not in seen
    printed = run_launch("--token-file", str(token_file), "--print-config")
    assert (printed.code, TOKEN in printed.stdout) == (0, False)


def test_the_token_in_asyncio(guarded: ServerProcess) -> None:
    async def ask(token: str | None) -> list[int]:
        async with AsyncClient(guarded.endpoint, token=token) as client:
            completion = await client.complete("def", max_tokens=3, ignore_eos=True)
            calls = [client.info(), client.info(), client.tokenize("x"), client.hello()]
            await asyncio.gather(*calls)
            return completion.ids

    assert len(asyncio.run(ask(TOKEN))) == 3
    for token in (None, "not-the-right-token"):
        with pytest.raises(ServerError, match="unauthenticated"):
            asyncio.run(ask(token))


def pdv_client(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launcher.client", "def add(", "--max-tokens", "3", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_the_token_on_the_command_line(
    guarded: ServerProcess, token_file: Path, tmp_path: Path
) -> None:
    endpoint = ("--endpoint", guarded.endpoint)
    assert pdv_client(*endpoint, "--token-file", str(token_file)).returncode == 0
    assert pdv_client(*endpoint, PDV_TOKEN_FILE=str(token_file)).returncode == 0
    wrong = tmp_path / "wrong"
    wrong.touch(0o600)
    wrong.write_text("not-the-right-token")
    for arguments, message in (
        ((), "pdv-client --token-file PATH"),
        (("--token-file", str(wrong)), "check that it is the one in the server's --token-file"),
        (("--token-file", "/nowhere/token"), "--token-file /nowhere/token cannot be read"),
    ):
        done = pdv_client(*endpoint, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1
        assert message in done.stderr


def test_an_llm_knows_its_own_token(
    tiny_pair: TinyPair, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PDV_TOKEN_FILE", str(token_file))
    options = {"device": "cpu", "threads": 1, "kv_cache_memory": "16M"}
    with LLM(tiny_pair.verifier, tiny_pair.draft, **options) as llm:
        assert llm.token == TOKEN
        (completion,) = llm.generate("def", SamplingParams(max_tokens=3, ignore_eos=True))
        assert len(completion.ids) == 3
        with Client(llm.ipc) as stranger, pytest.raises(ServerError, match="unauthenticated"):
            stranger.info()


def test_a_server_for_everyone_says_so(start_server: Start) -> None:
    server = start_server("--host", "0.0.0.0", "--insecure")
    assert "warning: --insecure: whoever can reach 0.0.0.0 may use this server" in server.stderr()
    assert listening(server)[0] == {"0.0.0.0"}
    with Client(server.endpoint) as client:
        assert client.tokenize("def")


def test_an_ipv6_server_with_a_token(start_server: Start, token_file: Path) -> None:
    server = start_server("--host", "::", "--token-file", str(token_file))
    assert "warning" not in server.stderr()
    assert server.endpoint.startswith("tcp://[::]:")
    port = server.endpoint.rpartition(":")[2]
    for address in ("[::1]", "127.0.0.1"):
        with Client(f"tcp://{address}:{port}", token=TOKEN) as client:
            assert client.tokenize("def")


@pytest.mark.parametrize("log_requests", [False, True])
def test_prompts_are_in_the_output_only_when_asked_for(
    start_server: Start, log_requests: bool
) -> None:
    asked = ["--log-requests", "--log-level", "error"] if log_requests else ["--log-level", "debug"]
    server = start_server(*asked)
    with Client(server.endpoint, timeout=5.0) as client:
        client.complete(MARKER, max_tokens=3)
        with pytest.raises(ServerError):
            client.complete(MARKER, max_tokens=10**6)
        client.complete([71, 72, 73, 74], max_tokens=3, stop=[MARKER])
        client.tokenize(MARKER)
        # A fault in the worker writes the stacks of its threads.
        stream = client.generate(MARKER * 3, max_tokens=400, ignore_eos=True)
        next(stream)
        os.kill(server.pids["worker-0"], signal.SIGABRT)
        with contextlib.suppress(ServerError, ServerUnreachable):
            stream.result()
    output = server.stop().stderr if server.process.poll() is None else server.wait().stderr
    assert "Fatal Python error: Aborted" in output
    assert (MARKER in output) is log_requests
    assert ("71, 72, 73, 74" in output) is log_requests


# Hostile models and files: refused before anything of theirs could run.


def refusal(pair: TinyPair, *more: str) -> str:
    done = run_launch(*tiny_arguments(pair, "--port", "0", *more))
    assert (done.code, done.stdout) == (2, ""), done.stderr
    (line,) = done.stderr.splitlines()
    return line


CODE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "EvilForCausalLM"])
@pytest.mark.parametrize("implementation", ["auto", "transformers"])
def test_a_model_with_code_is_refused(
    tmp_path: Path, architecture: str, implementation: str
) -> None:
    pair = make_tiny_pair(tmp_path)
    for name in ("modeling_evil.py", "__init__.py"):
        (pair.verifier / name).write_text(CODE)
    path = pair.verifier / "config.json"
    classes = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}
    values = {"auto_map": classes, "architectures": [architecture]}
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    message = refusal(pair, "--model-impl", implementation)
    assert "code of the model's own (auto_map), which is never run" in message
    assert not list(tmp_path.rglob("ran"))


class Bomb:
    """What makes a pickle run a program when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickled_weights_are_refused(tmp_path: Path, name: str) -> None:
    import pickle

    pair = make_tiny_pair(tmp_path)
    (pair.draft / "model.safetensors").unlink()
    (pair.draft / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    assert "the weights are pickle files" in refusal(pair)
    (pair.draft / "model.safetensors").write_bytes((pair.draft / name).read_bytes())
    assert "model.safetensors is damaged" in refusal(pair)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "\0", '{"a": 1e999}', ""])
def test_json_that_is_not_a_models_is_refused(tmp_path: Path, name: str, text: str) -> None:
    pair = make_tiny_pair(tmp_path)
    (pair.verifier / name).write_text(text)
    assert str(pair.verifier) in refusal(pair)


@pytest.mark.parametrize(
    "text",
    [
        "port: !!python/object/apply:os.mkdir [{ran}]",
        "!!python/object/new:os.mkdir [{ran}]",
        "model: !!python/name:os.system",
    ],
)
def test_yaml_with_code_is_refused(tiny_pair: TinyPair, tmp_path: Path, text: str) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(text.format(ran=tmp_path / "ran"))
    assert "is not plain YAML" in refusal(tiny_pair, "--config", str(file))
    assert not (tmp_path / "ran").exists()
