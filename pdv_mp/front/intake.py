"""From a client's text or ids to a request that waits for a replica.

Where there are tokenizers a prompt's text goes there first. The request counts as open meanwhile;
it is accepted, or refused for its length, when its ids have come.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from pdv_mp.config import EngineConfig
from pdv_mp.front.admission import Admission
from pdv_mp.front.journal import Request
from pdv_mp.front.outbox import Connection, Reply
from pdv_mp.front.request_log import RequestLog
from pdv_mp.front.stops import OutputText
from pdv_mp.front.text import TextCodec
from pdv_mp.front.tokenizers import BYTES_PER_TEXT, Text, Tokenizers
from pdv_mp.timeline import Timeline, state_index
from pdv_mp.wire import client_messages, protocol
from pdv_mp.wire.protocol import ErrorCode, PackedList, ProtocolError

if TYPE_CHECKING:
    from pdv_mp.front.service import Service

MAX_WAITING_TEXT_BYTES = 64 * 1024 * 1024
"""Most text that waits here for a tokenizer, of all clients together."""

_CLIENT_DECODE = state_index("client>front.decode")
_TEXT = state_index("front.text")
_PUBLISH = state_index("front.publish")


class Intake:
    """Takes texts and ids from clients, on behalf of the service that ends what was begun here."""

    def __init__(
        self,
        service: Service,
        config: EngineConfig,
        codec: TextCodec,
        admission: Admission,
        tokenizers: Tokenizers,
    ) -> None:
        self._service = service
        self._codec = codec
        self._admission = admission
        self._tokenizers = tokenizers
        self._request_log = RequestLog(config.server.log_requests)

    def generate(
        self, connection: Connection, message: client_messages.Generate, received_ns: int
    ) -> None:
        """Begin a request, or raise the ProtocolError that refuses it."""
        timeline = Timeline(_CLIENT_DECODE, received_ns)
        self._service.check_open(connection, message.id)
        prompt_ids = message.prompt_ids or []
        if message.prompt is not None and self._tokenizers.processes:
            bare = not message.add_special_tokens
            text = self._text(connection, message.id, message.prompt, bare)
            timeline.enter(_PUBLISH, time.monotonic_ns())
            text.message = message
            text.request = self._request(connection, message, timeline, received_ns)
            text.request.untokenized = True
            self._service.journal.expect(text.request)
            self._tokenizers.add(text)
            return
        if message.prompt is not None:
            timeline.enter(_TEXT, time.monotonic_ns())
            prompt_ids = self._admission.tokenize(
                message.id, message.prompt, bare=not message.add_special_tokens
            )
            timeline.enter(_PUBLISH, time.monotonic_ns())
        params = self._admission.parameters(message, prompt_ids)
        request = self._request(connection, message, timeline, received_ns)
        request.prompt_ids, request.params = np.array(prompt_ids, np.int32), params
        self._accept(request, message)

    def _request(
        self,
        connection: Connection,
        message: client_messages.Generate,
        timeline: Timeline,
        received_ns: int,
    ) -> Request:
        """An open request without its prompt."""
        params = message.params
        request = Request(
            key=self._service.journal.new_key(),
            connection=connection,
            id=message.id,
            prompt_ids=np.zeros(0, np.int32),
            params=params,
            stream=message.stream,
            wants_timeline=message.timeline,
            output=OutputText(self._codec.detokenizer(), params.stop),
            timeline=timeline,
            arrived_ns=received_ns,
            logprobs=None if message.stream or params.logprobs is None else PackedList(),
            prompt_logprobs=None if params.prompt_logprobs is None else PackedList(),
        )
        connection.open[request.id] = request
        return request

    def _accept(self, request: Request, message: client_messages.Generate) -> None:
        service, params = self._service, request.params
        service.journal.add(request)
        accepted = protocol.accepted(request.id, len(request.prompt_ids), params.seed or 0)
        service.clients.send(request.connection, Reply(accepted))
        self._request_log.accepted(request, message)
        request.queued_ns = time.monotonic_ns()
        service.dispatcher.admit()
        if not request.sent_ns:
            request.timeline.enter(service.dispatcher.waiting_state, request.queued_ns)

    def tokenize(self, connection: Connection, message: client_messages.Tokenize) -> None:
        """Answer with a text's ids, or raise the ProtocolError that refuses it."""
        bare = not message.add_special_tokens
        if not self._tokenizers.processes:
            ids = self._admission.tokenize(message.id, message.prompt, bare=bare)
            self._answer(connection, message.id, ids)
            return
        self._service.check_serving(message.id)
        self._service.check_room(message.id)
        self._tokenizers.add(self._text(connection, message.id, message.prompt, bare))

    def _text(self, connection: Connection, id: str, prompt: str, bare: bool) -> Text:
        """A text for a tokenizer. Raises ProtocolError if it is far too long, or too much waits."""
        self._admission.check_length(id, prompt)
        data = prompt.encode()
        waiting = self._tokenizers.waiting_bytes
        if waiting and waiting + len(data) + BYTES_PER_TEXT > MAX_WAITING_TEXT_BYTES:
            limit = MAX_WAITING_TEXT_BYTES // 2**20
            raise self._service.full(f"{limit} MiB of text wait to be tokenized", id)
        key = self._tokenizers.new_key()
        return Text(key=key, connection=connection, id=id, data=data, bare=bare)

    def tokenized(self, text: Text, ids: list[int]) -> None:
        """A tokenizer has answered: accept the request, or answer the client's question."""
        request, message = text.request, text.message
        if request is None or message is None:
            self._answer(text.connection, text.id, ids)
            return
        request.timeline.enter(_PUBLISH, time.monotonic_ns())
        try:
            request.params = self._admission.parameters(message, ids)
        except ProtocolError as error:
            self._service.end_with(request, error.code, error.message)
            return
        request.prompt_ids = np.array(ids, np.int32)
        request.untokenized = False
        self._accept(request, message)
        if request.cancelled:
            self._service.abort(request)

    def not_tokenized(self, text: Text, reason: str, retryable: bool | None) -> None:
        """A text has no ids, through no fault of its client."""
        self._refuse(text, ErrorCode.INTERNAL, reason, retryable)

    def refuse_unanswered(self, code: ErrorCode, reason: str) -> None:
        """No tokenizer will answer any more."""
        for text in self._tokenizers.give_up():
            self._refuse(text, code, reason)

    def _refuse(
        self, text: Text, code: ErrorCode, reason: str, retryable: bool | None = None
    ) -> None:
        if text.request is not None:
            self._service.end_with(text.request, code, reason, retryable)
            return
        frame = protocol.error(code, reason, text.id, retryable=retryable)
        self._service.errors[code.value] += 1
        self._service.clients.send(text.connection, Reply(frame))

    def _answer(self, connection: Connection, id: str, ids: list[int]) -> None:
        frame = protocol.encode("tokenized", id=id, ids=ids)
        self._service.clients.send(connection, Reply(frame))
