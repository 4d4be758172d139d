"""The front process: one thread, one poll over clients, engine and supervisor."""

from __future__ import annotations

import logging
import os
import resource
import secrets
import time
from pathlib import Path
from typing import Any

import zmq

from pdv_mp.binding import bind_ipc, bind_tcp, resolve_host
from pdv_mp.config import ConfigError, EngineConfig
from pdv_mp.control import ControlClient
from pdv_mp.front.admission import Admission, ModelFacts
from pdv_mp.front.authentication import Authentication
from pdv_mp.front.connections import ClientSocket
from pdv_mp.front.engine_edge import EngineEdge
from pdv_mp.front.outbox import Connection, Reply
from pdv_mp.front.report import Reporter
from pdv_mp.front.service import Service
from pdv_mp.front.text import TextCodec
from pdv_mp.topology import topology
from pdv_mp.wire import client_messages, protocol
from pdv_mp.wire import control as control_wire
from pdv_mp.wire import engine as engine_wire
from pdv_mp.wire.protocol import ErrorCode, ProtocolError

logger = logging.getLogger(__name__)

CLIENT_SOCKET = "client"
"""File name of the clients' socket in the run directory."""

MESSAGES_PER_TURN = 64
"""Most messages taken from one socket before the others are looked at again."""

CLIENTS_TURN_NS = 2_000_000
"""No more of the clients' messages are taken in a turn after this long: one may cost 0.2 s to
refuse, and everyone's tokens wait meanwhile."""

MAX_OPEN_FILES = 65_536
"""Each connection is one; this many are asked for, as far as the hard limit of the process goes."""

ALIVE_TICK_SECONDS = 0.5
ALIVE_AFTER_NS = 750_000_000
"""A connection that was sent nothing for this long at a tick is due, so one message a second."""

FLUSH_SECONDS = 2.0
LINGER_SECONDS = 1.0


class FrontError(RuntimeError):
    """The front cannot start or go on; the message says why and what to do."""


def run_front(config: EngineConfig, run_dir: Path, control: ControlClient, generation: int) -> None:
    """Serve clients until the supervisor says stop.

    Raises ConfigError when the configuration cannot be served or its port is taken, FrontError
    when the worker has another configuration.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        engine = EngineEdge(context, run_dir, generation, topology(config.topology).worker_names[0])
        try:
            _start(config, run_dir, control, context, engine)
        finally:
            engine.close()
    finally:
        context.term()


def _start(
    config: EngineConfig,
    run_dir: Path,
    control: ControlClient,
    context: zmq.Context[zmq.Socket[bytes]],
    engine: EngineEdge,
) -> None:
    if config.model.model is None:
        raise ConfigError("--model is not resolved; start the server through pdv-launch")
    authentication = Authentication(config.server)
    codec = TextCodec(Path(config.model.model))
    facts = _wait_for_engine(control, engine)
    if facts is None:
        return
    if facts["fingerprint"] != config.fingerprint:
        raise FrontError("the worker was started with another configuration than the front")
    front = Front(config, control, context, engine, codec, authentication, facts)
    try:
        front.listen(run_dir)
        front.serve()
    finally:
        front.close()


def _wait_for_engine(control: ControlClient, engine: EngineEdge) -> dict[str, Any] | None:
    """The worker's facts, or None if the supervisor stops the start."""
    poller = zmq.Poller()
    poller.register(engine.socket, zmq.POLLIN)
    poller.register(control.socket, zmq.POLLIN)
    while True:
        while (order := control.receive()) is not None:
            if isinstance(order, control_wire.Stop):
                return None
            if isinstance(order, (control_wire.Drain, control_wire.Abort, control_wire.Lost)):
                control.send(control_wire.Drained())
        message = engine.receive()
        if isinstance(message, engine_wire.EngineReady):
            return message.facts
        if message is not None:
            raise FrontError(f"the worker sent {type(message).__name__} before it was ready")
        poller.poll()


CHANGING_FACTS = ("processes", "kv_blocks", "max_request_tokens")
"""What a worker may decide otherwise after a restart; it may only give a request more room."""


def _check_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Raises FrontError if open requests cannot go on in a worker that was started again."""
    changed = [
        f"{name} was {before.get(name)!r} and is {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if name not in CHANGING_FACTS and before.get(name) != after.get(name)
    ]
    least, room = before["max_request_tokens"], after["max_request_tokens"]
    if room < least:
        changed.append(f"max_request_tokens was {least} and is {room}")
    if changed:
        raise FrontError(f"the worker came back as another one: {'; '.join(changed)}")


class Front:
    """The sockets of the front process and the loop over them."""

    def __init__(
        self,
        config: EngineConfig,
        control: ControlClient,
        context: zmq.Context[zmq.Socket[bytes]],
        engine: EngineEdge,
        codec: TextCodec,
        authentication: Authentication,
        facts: dict[str, Any],
    ) -> None:
        self._config = config
        self._authentication = authentication
        self._control = control
        self._engine = engine
        self._instance = secrets.token_hex(8)
        model = ModelFacts(
            facts["vocab_size"],
            tuple(facts["eos_ids"]),
            facts["max_model_len"],
            facts["max_request_tokens"],
        )
        self._engine_facts = facts
        self._poller = zmq.Poller()
        self._admission = Admission(codec, model)
        limit = config.server.max_message_bytes
        self._service = Service(
            config,
            codec,
            model,
            self._admission,
            facts["credits"],
            lambda service: ClientSocket(
                context, limit, service.connection_gone, service.slow_consumer
            ),
            engine,
        )
        self._clients = self._service.clients
        self._reporter = Reporter(config, facts, self._instance, model)
        self._endpoints: list[str] = []
        self._owes_drained = False
        self._stopped = False
        self._next_tick: float | None = None
        self._info_number = 0
        self._info_waiters: list[Connection] = []
        self._info_next: list[Connection] = []

    def listen(self, run_dir: Path) -> None:
        """Bind the clients' socket and tell the supervisor where. Raises ConfigError."""
        server = self._config.server
        router = self._clients.socket
        try:
            endpoint = bind_tcp(router, resolve_host(server.host), server.port)
        except zmq.ZMQError as error:
            reason = os.strerror(error.errno or 0).lower()
            raise ConfigError(
                f"--port {server.port} cannot be used on {server.host}: {reason}; "
                "choose another, or 0 for a free one"
            ) from error
        ipc = bind_ipc(router, run_dir / CLIENT_SOCKET)
        self._endpoints = [endpoint, ipc]
        facts = {"endpoint": endpoint, "ipc": ipc, "pid": os.getpid(), "instance": self._instance}
        self._control.send(control_wire.Ready(name="front", facts=facts))

    def serve(self) -> None:
        """The loop: poll, orders first, then tokens, then clients, then what is due."""
        poller = self._poller
        newcomers = self._clients.newcomers
        sockets = (self._control.socket, self._engine.socket, self._clients.socket)
        for polled in (*sockets, newcomers.socket):
            poller.register(polled, zmq.POLLIN)
        while not self._stopped:
            poller.poll(self._poll_milliseconds())
            polled_ns = time.monotonic_ns()
            while (order := self._control.receive()) is not None:
                self._obey(order)
            self._take_from_engine(polled_ns)
            newcomers.admit(MESSAGES_PER_TURN)
            self._take_from_clients()
            self._do_what_is_due()
        self._flush()

    def close(self) -> None:
        """Close the clients' socket."""
        self._clients.close(LINGER_SECONDS)

    def _poll_milliseconds(self) -> int | None:
        due = [at for at in (self._clients.next_retry(), self._next_tick) if at is not None]
        if not due:
            return None
        return max(0, int((min(due) - time.monotonic()) * 1000) + 1)

    def _obey(self, order: control_wire.SupervisorMessage) -> None:
        if isinstance(order, control_wire.Stop):
            self._stopped = True
            self._service.abort_all()
        elif isinstance(order, control_wire.Drain):
            self._service.draining = self._owes_drained = True
        elif isinstance(order, control_wire.Abort):
            self._service.draining = self._owes_drained = True
            self._service.abort_all()
        elif isinstance(order, control_wire.Lost):
            self._owes_drained = True
            self._lose(order.name)
        elif isinstance(order, control_wire.Restarting):
            self._restart(order)

    def _restart(self, order: control_wire.Restarting) -> None:
        """A worker died: take what it had still sent, and wait for the next on a new socket."""
        if self._service.restarting is None:
            while (message := self._engine.receive()) is not None:
                self._take(message)
        self._poller.unregister(self._engine.socket)
        batch = self._engine.reopen(order.generation)
        self._poller.register(self._engine.socket, zmq.POLLIN)
        self._service.restart(order.name, batch, order.restarts_left)
        self._reporter.without(order.name)
        self._answer_all_info()

    def _resume(self, facts: dict[str, Any]) -> None:
        """The worker is back. Raises FrontError if it is not what it was: then the requests that
        are open are lost."""
        try:
            _check_same(self._engine_facts, facts)
        except FrontError:
            self._lose(self._engine.peer)
            self._flush()
            raise
        self._reporter.restarted(facts)
        self._service.resume()

    def _lose(self, name: str) -> None:
        self._engine.lost = True
        self._service.lose(name)
        self._answer_all_info()

    def _answer_all_info(self) -> None:
        """Answer without the engine, which is gone."""
        waiters = self._info_waiters + self._info_next
        self._info_waiters, self._info_next = [], []
        self._answer_info(waiters, {})

    def _take_from_engine(self, polled_ns: int) -> None:
        first: int | None = polled_ns
        for _ in range(MESSAGES_PER_TURN):
            message = self._engine.receive(first)
            first = None
            if message is None:
                return
            if self._service.lost is None:
                self._take(message)

    def _take(self, message: engine_wire.EngineMessage) -> None:
        if isinstance(message, engine_wire.Tokens):
            self._service.tokens(message)
        elif isinstance(message, engine_wire.PromptLogprobs):
            self._service.prompt_logprobs(message)
        elif isinstance(message, engine_wire.InfoReply):
            self._answer_info(self._info_waiters, message.info)
            self._info_waiters, self._info_next = self._info_next, []
            if self._info_waiters:
                self._ask_info()
        elif isinstance(message, engine_wire.EngineReady) and self._service.restarting is not None:
            self._resume(message.facts)
        else:
            raise FrontError(f"the worker sent an unexpected {type(message).__name__}")

    def _take_from_clients(self) -> None:
        end = time.monotonic_ns() + CLIENTS_TURN_NS
        for _ in range(MESSAGES_PER_TURN):
            received = self._clients.receive()
            if received is None:
                return
            connection, frames = received
            try:
                self._handle(connection, frames, time.monotonic_ns())
            except ProtocolError as error:
                self._service.refuse(connection, error)
            if time.monotonic_ns() >= end:
                return

    def _handle(self, connection: Connection, frames: list[bytes], received_ns: int) -> None:
        if len(frames) != 1:
            raise ProtocolError(
                ErrorCode.BAD_REQUEST, f"a message is one frame, not {len(frames)}; use a DEALER"
            )
        message = client_messages.decode_client(
            frames[0],
            self._config.server.max_message_bytes,
            self._authentication.allowed(connection),
        )
        harmless = isinstance(message, (client_messages.Hello, client_messages.Ping))
        if not connection.has_assigned_id and not harmless:
            raise ProtocolError(
                ErrorCode.BAD_REQUEST,
                "the socket's routing id (identity) must be left to libzmq: another client could "
                "choose the same one",
                getattr(message, "id", None),
            )
        if isinstance(message, client_messages.Generate):
            self._service.generate(connection, message, received_ns)
        elif isinstance(message, client_messages.Cancel):
            self._service.cancel(connection, message.id)
        elif isinstance(message, client_messages.Ping):
            identity = {"instance": self._instance, "connection": connection.number}
            self._reply(connection, "pong", n=message.n, **identity)
        elif isinstance(message, client_messages.Hello):
            self._authentication.hello(connection, message)
            self._reply(connection, "welcome", **self._reporter.welcome(connection))
        elif isinstance(message, client_messages.Info):
            self._request_info(connection)
        elif isinstance(message, client_messages.Tokenize):
            ids = self._admission.tokenize(message.id, message.prompt)
            self._reply(connection, "tokenized", id=message.id, ids=ids)
        else:
            text = self._admission.detokenize(message.id, message.ids)
            self._reply(connection, "detokenized", id=message.id, text=text)

    def _reply(self, to: Connection, kind: str, /, **fields: Any) -> None:
        self._clients.send(to, Reply(protocol.encode(kind, **fields)))

    def _request_info(self, connection: Connection) -> None:
        """At most one question to the engine is on its way; it answers all who asked before it."""
        if self._engine.lost or self._service.restarting is not None:
            self._answer_info([connection], {})
        elif self._info_waiters:
            self._info_next.append(connection)
        else:
            self._info_waiters.append(connection)
            self._ask_info()

    def _ask_info(self) -> None:
        self._info_number += 1
        self._engine.send(engine_wire.InfoRequest(number=self._info_number))

    def _answer_info(self, connections: list[Connection], engine_info: dict[str, Any]) -> None:
        if not connections:
            return
        fields = self._reporter.info(
            self._service, self._clients, self._engine, self._endpoints, engine_info
        )
        for connection in connections:
            self._reply(connection, "info", **fields)

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        self._clients.retry(now)
        if self._next_tick is not None and now >= self._next_tick:
            self._send_alive()
            self._next_tick = now + ALIVE_TICK_SECONDS
        self._service.end_turn()
        if not self._service.journal.open:
            if self._owes_drained:
                self._control.send(control_wire.Drained())
                self._owes_drained = False
            if self._next_tick is not None and not self._clients.with_open_requests():
                self._next_tick = None
        elif self._next_tick is None:
            self._next_tick = now + ALIVE_TICK_SECONDS

    def _send_alive(self) -> None:
        due_ns = time.monotonic_ns() - ALIVE_AFTER_NS
        for connection in self._clients.with_open_requests():
            if connection.last_sent_ns <= due_ns and not connection.outbox:
                identity = {"instance": self._instance, "connection": connection.number}
                self._reply(connection, "alive", **identity)

    def _flush(self) -> None:
        """Give what waits for slow readers a bounded time to leave."""
        deadline = time.monotonic() + FLUSH_SECONDS
        self._service.end_turn()
        while (retry_at := self._clients.next_retry()) is not None:
            now = time.monotonic()
            if now >= deadline:
                logger.warning("messages to slow readers were dropped at the end")
                return
            time.sleep(max(0.0, min(retry_at, deadline) - now))
            self._clients.retry(time.monotonic())
            self._clients.settle()
