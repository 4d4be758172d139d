"""The front process: one thread, one poll over clients, engines and supervisor."""

from __future__ import annotations

import logging
import os
import resource
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import zmq

from pdv_mp.binding import CLIENT_SOCKET, bind_ipc, bind_tcp, resolve_host
from pdv_mp.config import ConfigError, EngineConfig
from pdv_mp.control import ControlClient
from pdv_mp.front.admission import Admission, ModelFacts
from pdv_mp.front.authentication import Authentication
from pdv_mp.front.chat_files import describe_chat
from pdv_mp.front.connections import ClientSocket
from pdv_mp.front.engine_edge import EngineEdge
from pdv_mp.front.engine_facts import (
    Facts,
    FrontError,
    check_restarted,
    check_tokenizer,
    wait_for_engines,
    wait_for_tokenizers,
)
from pdv_mp.front.inquiries import EngineInfo, Inquiries
from pdv_mp.front.outbox import Connection, Reply
from pdv_mp.front.peer_edge import PeerEdge
from pdv_mp.front.replicas import Replica
from pdv_mp.front.report import Reporter
from pdv_mp.front.service import Service
from pdv_mp.front.text import TextCodec
from pdv_mp.front.tokenizers import Tokenizer, TokenizerEdge
from pdv_mp.front.usage import Usage, UsageAccount, UsageQuestions
from pdv_mp.lanes.injected_delay import delay_of, parse_delays
from pdv_mp.lanes.waiting import Timer
from pdv_mp.process import READY_FILE
from pdv_mp.topology import FRONT, topology_of
from pdv_mp.wire import client_messages, protocol
from pdv_mp.wire import control as control_wire
from pdv_mp.wire import engine as engine_wire
from pdv_mp.wire.protocol import ErrorCode, ProtocolError
from pdv_mp.wire.tokenize import Ids, TokenizerMessage, TokenizerReady
from pdv_mp.workers.handoffs import Handoffs
from pdv_mp.workers.trace import open_trace

logger = logging.getLogger(__name__)

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


def run_front(
    config: EngineConfig, run_dir: Path, control: ControlClient, generations: Mapping[str, int]
) -> None:
    """Serve clients until the supervisor says stop. ``generations``: of the workers, by name.

    Raises ConfigError when the configuration cannot be served or its port is taken, FrontError
    when a worker has another configuration.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    replicas: list[Replica] = []
    tokenizers: list[Tokenizer] = []
    row, delays = topology_of(config), parse_delays(config.handoff.inject_delay)
    try:
        for number, name in enumerate(row.scheduler_names):
            held = delay_of(delays, "verify>front")
            engine_edge = EngineEdge(context, run_dir, generations[name], name, number, held)
            replicas.append(Replica(number, name, engine_edge))
        for number, name in enumerate(row.tokenizer_names):
            held = delay_of(delays, "tokenizer>front")
            text_edge = TokenizerEdge(context, run_dir, generations[name], name, held)
            tokenizers.append(Tokenizer(number, name, text_edge))
        _start(config, run_dir, control, context, replicas, tokenizers)
    finally:
        for edge in edges_of(replicas, tokenizers):
            edge.close()
        context.term()


def edges_of(replicas: Sequence[Replica], tokenizers: Sequence[Tokenizer]) -> list[PeerEdge[Any]]:
    """The front's edges to other processes of the server."""
    return [*(peer.edge for peer in replicas), *(peer.edge for peer in tokenizers)]


def _start(
    config: EngineConfig,
    run_dir: Path,
    control: ControlClient,
    context: zmq.Context[zmq.Socket[bytes]],
    replicas: Sequence[Replica],
    tokenizers: Sequence[Tokenizer],
) -> None:
    if config.model.model is None:
        raise ConfigError("--model is not resolved; start the server through pdv-launch")
    authentication = Authentication(config.server)
    codec = TextCodec(Path(config.model.model))
    facts = wait_for_engines(config, control, replicas)
    if facts is None:
        return
    if not wait_for_tokenizers(config, control, tokenizers):
        return
    front = Front(config, control, context, replicas, tokenizers, codec, authentication, facts)
    try:
        front.listen(run_dir)
        front.serve()
    finally:
        front.close()


class Front:
    """The sockets of the front process and the loop over them."""

    def __init__(
        self,
        config: EngineConfig,
        control: ControlClient,
        context: zmq.Context[zmq.Socket[bytes]],
        replicas: Sequence[Replica],
        tokenizers: Sequence[Tokenizer],
        codec: TextCodec,
        authentication: Authentication,
        facts: Facts,
    ) -> None:
        self._config = config
        self._authentication = authentication
        self._control = control
        self._replicas = replicas
        self._tokenizers = tokenizers
        self._edges = edges_of(replicas, tokenizers)
        self._timer: Timer | None = None
        self._instance = secrets.token_hex(8)
        model = ModelFacts(
            facts["vocab_size"],
            tuple(facts["eos_ids"]),
            facts["max_model_len"],
            facts["max_request_tokens"],
            has_logits="emulated" not in facts,
        )
        self._first_facts = facts
        self._poller = zmq.Poller()
        self._description = describe_chat(Path(config.model.model or ""))
        self._admission = Admission(codec, model)
        limit = config.server.max_message_bytes
        self._handoffs = Handoffs()
        self._service = Service(
            config,
            codec,
            model,
            self._admission,
            lambda service: ClientSocket(
                context, limit, service.connection_gone, service.slow_consumer
            ),
            replicas,
            tokenizers,
            self._handoffs,
        )
        self._clients = self._service.clients
        self._reporter = Reporter(
            config, replicas, tokenizers, self._instance, model, self._handoffs
        )
        self._inquiries = Inquiries(replicas, self._answer_info)
        on_gpu = str(facts["device"]).startswith("cuda")
        self._usage = UsageQuestions(UsageAccount(on_gpu=on_gpu))
        self._endpoints: list[str] = []
        self._owes_drained = False
        self._stopped = False
        self._next_tick: float | None = None

    def listen(self, run_dir: Path) -> None:
        """Bind the clients' socket and tell the supervisor where. Raises ConfigError."""
        self._handoffs.trace = open_trace(self._config, run_dir, FRONT, 0)
        self._reporter.read_from(run_dir / READY_FILE)
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
        clients, newcomers = self._clients, self._clients.newcomers
        edges = (edge.socket for edge in self._edges)
        of_clients = (clients.socket, newcomers.socket, clients.unfinished.socket)
        for polled in (self._control.socket, *edges, *of_clients, self._usage.fd):
            poller.register(polled, zmq.POLLIN)
        while not self._stopped:
            self._set_timer()
            readable = {socket for socket, _ in poller.poll(self._poll_milliseconds())}
            polled_ns = time.monotonic_ns()
            if self._timer is not None:
                self._timer.clear()
            while (order := self._control.receive()) is not None:
                self._obey(order)
            for replica in self._replicas:
                if replica.edge.socket in readable or replica.edge.due_ns is not None:
                    self._take_from_engine(replica, polled_ns)
            for tokenizer in self._tokenizers:
                if tokenizer.edge.socket in readable or tokenizer.edge.due_ns is not None:
                    self._take_from_tokenizer(tokenizer, polled_ns)
            newcomers.admit(MESSAGES_PER_TURN)
            clients.unfinished.note_accepted(newcomers.last_number)
            self._take_from_clients()
            if self._usage.fd in readable:
                self._usage.take()
            self._do_what_is_due()
        self._flush()

    def close(self) -> None:
        """Close the clients' socket."""
        self._clients.close(LINGER_SECONDS)
        self._usage.close()
        if self._timer is not None:
            self._timer.close()

    def _set_timer(self) -> None:
        """Have the poll return when the first message that is held back may be seen."""
        due = [edge.due_ns for edge in self._edges if edge.due_ns is not None]
        if not due:
            return
        if self._timer is None:
            self._timer = Timer()
            self._poller.register(self._timer.fd, zmq.POLLIN)
        self._timer.set(min(due) - time.monotonic_ns())

    def _poll_milliseconds(self) -> int | None:
        times = (
            self._clients.next_retry(),
            self._clients.unfinished.next_check(),
            self._next_tick,
        )
        due = [at for at in times if at is not None]
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
        """A process died. If it held a scheduler: take what it had still sent, and wait for the
        next on a new socket. Nothing that it sent can arrive after that."""
        self._reporter.died(order.name, order.cause)
        for replica in self._replicas:
            if replica.name == order.name:
                self._restart_replica(replica, order)
        for tokenizer in self._tokenizers:
            if tokenizer.name == order.name:
                self._restart_tokenizer(tokenizer, order)

    def _restart_replica(self, replica: Replica, order: control_wire.Restarting) -> None:
        edge = replica.edge
        if not replica.restarting:
            while (message := edge.receive()) is not None:
                self._take(replica, message)
        self._reporter.departed(replica)
        self._poller.unregister(edge.socket)
        batch = edge.reopen(order.generation)
        self._poller.register(edge.socket, zmq.POLLIN)
        self._service.restart(replica, batch, order.restarts_left)
        self._inquiries.without(replica)

    def _restart_tokenizer(self, tokenizer: Tokenizer, order: control_wire.Restarting) -> None:
        edge = tokenizer.edge
        while not tokenizer.restarting and (message := edge.receive()) is not None:
            self._take_text(tokenizer, message)
        self._poller.unregister(edge.socket)
        batch = edge.reopen(order.generation)
        self._poller.register(edge.socket, zmq.POLLIN)
        self._service.tokenizers.restart(tokenizer, batch)

    def _resume(self, replica: Replica, facts: Facts) -> None:
        """The worker is back. Raises FrontError if it is not what it was: then the requests that
        are open are lost."""
        try:
            check_restarted(self._first_facts, replica, facts)
        except FrontError:
            self._lose(replica.name)
            self._flush()
            raise
        replica.started(facts)
        self._reporter.restarted(replica)
        self._service.resume(replica)

    def _lose(self, name: str) -> None:
        for replica in self._replicas:
            replica.edge.lost = True
        self._service.lose(name)
        for replica in self._replicas:
            self._inquiries.without(replica)

    def _take_from_engine(self, replica: Replica, polled_ns: int) -> None:
        first: int | None = polled_ns
        for _ in range(MESSAGES_PER_TURN):
            message = replica.edge.receive(first)
            first = None
            if message is None:
                return
            if self._service.lost is None:
                self._take(replica, message)

    def _take_from_tokenizer(self, tokenizer: Tokenizer, polled_ns: int) -> None:
        first: int | None = polled_ns
        for _ in range(MESSAGES_PER_TURN):
            message = tokenizer.edge.receive(first)
            first = None
            if message is None:
                return
            self._take_text(tokenizer, message)

    def _take_text(self, tokenizer: Tokenizer, message: TokenizerMessage) -> None:
        if isinstance(message, Ids):
            self._service.tokenizers.take(tokenizer, message)
        elif isinstance(message, TokenizerReady) and tokenizer.restarting:
            check_tokenizer(self._config, tokenizer, message.facts)
            self._service.tokenizers.resume(tokenizer, message.facts)
            self._reporter.seen(message.facts["processes"])
        else:
            raise FrontError(f"{tokenizer.name} sent an unexpected {type(message).__name__}")

    def _take(self, replica: Replica, message: engine_wire.EngineMessage) -> None:
        if isinstance(message, engine_wire.Tokens):
            taken_ns = time.monotonic_ns()
            self._handoffs.received("verify>front", message.stamps, replica.number)
            self._service.tokens(replica, message)
            self._handoffs.delivered(message, taken_ns)
        elif isinstance(message, engine_wire.PromptLogprobs):
            self._service.prompt_logprobs(replica, message)
        elif isinstance(message, engine_wire.InfoReply):
            self._reporter.heard(replica, message.info)
            self._inquiries.heard(replica, message)
        elif isinstance(message, engine_wire.EngineReady) and replica.restarting:
            self._resume(replica, message.facts)
        else:
            raise FrontError(f"{replica.name} sent an unexpected {type(message).__name__}")

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
            self._service.intake.generate(connection, message, received_ns)
        elif isinstance(message, client_messages.Cancel):
            self._service.cancel(connection, message.id)
        elif isinstance(message, client_messages.Ping):
            identity = {"instance": self._instance, "connection": connection.number}
            self._reply(connection, "pong", n=message.n, **identity)
        elif isinstance(message, client_messages.Hello):
            self._authentication.hello(connection, message)
            self._reply(connection, "welcome", **self._reporter.welcome(connection))
        elif isinstance(message, client_messages.Info):
            self._inquiries.ask(connection, message.batches)
        elif isinstance(message, client_messages.Tokenize):
            self._service.intake.tokenize(connection, message)
        elif isinstance(message, client_messages.Describe):
            self._reply(connection, "description", **self._description)
        elif message.bytes:
            found = self._admission.bytes_of(message.id, message.ids)
            self._reply(connection, "detokenized", id=message.id, bytes=found)
        else:
            text = self._admission.detokenize(message.id, message.ids)
            self._reply(connection, "detokenized", id=message.id, text=text)

    def _reply(self, to: Connection, kind: str, /, **fields: Any) -> None:
        self._clients.send(to, Reply(protocol.encode(kind, **fields)))

    def _answer_info(self, connections: list[Connection], found: EngineInfo) -> None:
        if not connections:
            return
        fields = self._reporter.info(self._service, self._clients, self._endpoints, found)

        def answer(usage: Usage) -> None:
            for connection in connections:
                self._reply(connection, "info", **fields, **usage)

        self._usage.ask(self._reporter.everyone, answer)

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        self._clients.retry(now)
        self._clients.end_unfinished(now)
        if self._next_tick is not None and now >= self._next_tick:
            self._send_alive()
            self._next_tick = now + ALIVE_TICK_SECONDS
        self._service.end_turn()
        if self._service.is_idle:
            if self._owes_drained:
                self._control.send(control_wire.Drained())
                self._owes_drained = False
            if self._next_tick is not None and not self._clients.awaiting():
                self._next_tick = None
        elif self._next_tick is None:
            self._next_tick = now + ALIVE_TICK_SECONDS

    def _send_alive(self) -> None:
        due_ns = time.monotonic_ns() - ALIVE_AFTER_NS
        for connection in self._clients.awaiting():
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
