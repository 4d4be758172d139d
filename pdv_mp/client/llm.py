"""``LLM``: a server of one's own, for scripts and notebooks."""

from __future__ import annotations

import contextlib
import json
import operator
import os
import select
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from launcher.output import PREFIX
from pdv_mp.client.client import Client, Completion, ServerError, ServerUnreachable
from pdv_mp.process import READY_FILE, environment_for_children
from pdv_mp.sampling_params import SamplingParams
from pdv_mp.token_file import read_token

Prompt = str | Sequence[int]

STOP_SECONDS = 30.0
"""How long :meth:`LLM.close` waits for the server before it kills it."""

SILENCE_SECONDS = 10.0
"""How long the server may be silent with requests open; it says something every second."""

STOPPED = "the server was stopped"

_LAST_LINES = 20


class LaunchError(RuntimeError):
    """The server could not be started, or is gone; the message is the launcher's own."""


class LLM:
    """Starts a server for a verifier and its draft, and ends it with this object.

    ``model`` and ``draft_model`` are folders or hub ids; without any, the shipped pair is served.
    ``options`` are those of ``pdv-launch``, by name (``max_num_seqs=8``); one that is JSON may be
    given as a map (``speculative_config={"method": "ngram"}``). The processes are
    children of a launcher that ends when this process does, however that happens. An LLM may be
    used from several threads, and as a context manager.

    Raises LaunchError with the launcher's message if the server does not start.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        draft_model: str | os.PathLike[str] | None = None,
        topology: str | None = None,
        **options: Any,
    ) -> None:
        arguments = [*_flags({"model": model, "draft_model": draft_model, "topology": topology})]
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        life_reader, life_writer = os.pipe()
        ready_reader, ready_writer = os.pipe()
        try:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "launcher.launch"),
                    *(*arguments, *_flags({"port": 0, **options})),
                    *("--parent-fd", str(life_reader), "--ready-fd", str(ready_writer)),
                ],
                env=environment_for_children(),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(life_reader, ready_writer),
                start_new_session=True,  # Ctrl-C in a terminal or notebook is for the script
            )
        except OSError:
            os.close(life_writer)
            os.close(ready_reader)
            self._log.close()
            raise
        finally:
            os.close(life_reader)
            os.close(ready_writer)
        self._finalizer = weakref.finalize(
            self, _shut_down, self._process, life_writer, self._log, os.getpid()
        )
        try:
            self._ready = self._wait_ready(ready_reader)
            token_file = self._ready["token_file"]
            self._token = None if token_file is None else read_token(Path(token_file))
            with self._connect() as client:
                limit: int = client.hello()["limits"]["max_open_requests"]
        except BaseException:
            self.close()
            raise
        finally:
            os.close(ready_reader)
        self._room = threading.BoundedSemaphore(limit)

    @property
    def endpoint(self) -> str:
        """The server's tcp endpoint, for other clients."""
        return str(self._ready["endpoint"])

    @property
    def ipc(self) -> str:
        """The server's ipc endpoint, which :meth:`generate` uses."""
        return str(self._ready["ipc"])

    @property
    def http(self) -> str | None:
        """Where the HTTP gateway is, of a server with ``http_port``; None without one."""
        url = self._ready.get("http")
        return None if url is None else str(url)

    @property
    def token(self) -> str | None:
        """What other clients of the server must give as their token, if it was started so."""
        return self._token

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name, the launcher's included, as they are after restarts."""
        try:
            text = (Path(self._ready["run_dir"]) / READY_FILE).read_text(encoding="utf-8")
        except FileNotFoundError:  # the server has ended
            return dict(self._ready["pids"])
        return dict(json.loads(text)["pids"])

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """The completions of the prompts, in their order; all of them are served at once.

        A prompt is a text or a list of token ids; one text alone is a list of one.
        ``sampling_params`` is for all prompts, or a list with one each; the default is greedy.

        Raises ServerError if the server refuses a prompt (the others are then cancelled),
        TypeError for a prompt that is neither, LaunchError if the server is gone or is stopped
        meanwhile.
        """
        given: Sequence[Any] = [prompts] if isinstance(prompts, str) else list(prompts)
        texts = [_checked_prompt(index, prompt) for index, prompt in enumerate(given)]
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            params = [sampling_params or SamplingParams()] * len(texts)
        else:
            params = list(sampling_params)
        if len(params) != len(texts):
            raise ValueError(f"{len(params)} sampling_params for {len(texts)} prompts")
        if not self._finalizer.alive:
            raise LaunchError("this LLM is closed")
        try:
            return self._generate(texts, params)
        except ServerUnreachable as error:
            if self._process.poll() is None:
                raise
            raise LaunchError(self._last_words()) from error
        except ServerError as error:
            if error.code == "draining":
                raise LaunchError(STOPPED) from error
            if error.code != "lane_failed":
                raise
            self._process.wait(STOP_SECONDS)
            raise LaunchError(self._last_words()) from error

    def _generate(self, prompts: list[Prompt], params: list[SamplingParams]) -> list[Completion]:
        completions: dict[int, Completion] = {}
        open_requests: dict[str, int] = {}
        waiting = iter(range(len(prompts)))
        left = len(prompts)

        def fill(client: Client) -> None:
            """Submits what there is room for; with nothing open it waits for room."""
            nonlocal left
            while left and self._room.acquire(blocking=not open_requests):
                index = next(waiting)
                left -= 1
                try:
                    open_requests[client.submit(prompts[index], params[index])] = index
                except BaseException:
                    self._room.release()
                    raise

        with self._connect() as client:
            try:
                fill(client)
                for result in client.results():
                    if isinstance(result, ServerError):
                        raise result
                    completions[open_requests.pop(result.id)] = result
                    self._room.release()
                    if result.finish == "abort":
                        raise LaunchError(STOPPED)
                    fill(client)
            except (ServerUnreachable, LaunchError):
                raise
            except BaseException:
                # Their room is given back only when the server has ended them.
                for request in open_requests:
                    client.cancel(request)
                for _ in client.results(return_errors=True):
                    pass
                raise
            finally:
                for _ in open_requests:
                    self._room.release()
        return [completions[index] for index in range(len(prompts))]

    def _connect(self) -> Client:
        return _WatchingClient(self._process, self.ipc, self._token)

    def close(self) -> None:
        """Stops the server, aborting what is still open; more calls do nothing."""
        self._finalizer()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _wait_ready(self, reader: int) -> dict[str, Any]:
        text = b""
        while not text.endswith(b"}\n"):
            readable, _, _ = select.select([reader], [], [], 0.5)
            chunk = os.read(reader, 65536) if readable else b""
            text += chunk
            ended = bool(readable) and not chunk
            if ended:
                self._process.wait(STOP_SECONDS)
            if self._process.poll() is not None:
                raise LaunchError(self._last_words())
        ready: dict[str, Any] = json.loads(text)
        return ready

    def _last_words(self) -> str:
        """Why the launcher ended: its last message, else the last lines of its log."""
        if not self._finalizer.alive:
            return STOPPED  # by close(), in another thread
        self._log.seek(0)
        text = self._log.read().decode(errors="replace").rstrip()
        start = text.rfind(f"\n{PREFIX}") + 1
        if text.startswith(PREFIX, start):
            return text[start + len(PREFIX) :]
        lines = text.splitlines()[-_LAST_LINES:]
        return "\n".join([f"pdv-launch ended with status {self._process.returncode}", *lines])


class _WatchingClient(Client):
    """A client that does not wait for a server whose launcher has ended."""

    def __init__(self, launcher: subprocess.Popen[bytes], endpoint: str, token: str | None) -> None:
        super().__init__(endpoint, timeout=SILENCE_SECONDS, on_message=self._count, token=token)
        self._launcher = launcher
        self._messages = 0

    def _count(self, message: dict[str, Any]) -> None:
        self._messages += 1

    def _wait(self) -> None:
        ended = self._launcher.poll() is not None
        messages = self._messages
        super()._wait()
        if ended and self._messages == messages:  # nothing that it sent before is left
            raise ServerUnreachable(f"the server behind {self.endpoint} has ended")


def _checked_prompt(index: int, prompt: Any) -> Prompt:
    if isinstance(prompt, str):
        return prompt
    if hasattr(prompt, "__index__"):
        raise TypeError("prompts is a list of token ids; give a list of such lists")
    if isinstance(prompt, (bytes, bytearray)) or not isinstance(prompt, Iterable):
        raise TypeError(f"prompts[{index}] is {prompt!r}; give a text or a list of token ids")
    try:
        return [operator.index(token) for token in prompt]
    except TypeError as error:
        raise TypeError(f"prompts[{index}] has something that is no token id: {error}") from error


def _flags(options: dict[str, Any]) -> list[str]:
    flags = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if value is True:
            flags.append(f"--{flag}")
        elif value is False:
            flags.append(f"--no-{flag}")
        elif isinstance(value, Mapping):
            flags.append(f"--{flag}={json.dumps(dict(value))}")
        elif value is not None:
            flags.append(f"--{flag}={os.fspath(value) if hasattr(value, '__fspath__') else value}")
    return flags


def _shut_down(
    process: subprocess.Popen[bytes], life_writer: int, log: IO[bytes], owner: int
) -> None:
    """Closes the pipe that keeps the launcher alive, and waits for its end."""
    if os.getpid() != owner:
        return  # a forked copy of the process that owns the server
    with contextlib.suppress(OSError):
        os.close(life_writer)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    log.close()
