"""An answer as server-sent events."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Sequence
from typing import Any

from starlette.types import Receive, Scope, Send

from gateway.answers import REFUSALS, Answer, Disconnected
from gateway.chunks import DONE, FINISH, KEEP_ALIVE, ChunkWriter, error_event
from gateway.errors import api_error
from gateway.jobs import Job
from gateway.measures import usage
from gateway.stream_writer import StreamWriter
from gateway.token_logprobs import origins
from pdv_mp.client.client_core import Chunk, Completion, Generation

HEADERS_AFTER_SECONDS = 1.0
"""A stream begins with its first token, so that a refusal has its status; at the latest after this
long, so that nobody thinks us dead."""

KEEP_ALIVE_SECONDS = 10.0

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class StreamedAnswer(Answer):
    """Server-sent events, one for each ``tokens`` message, as many in one write as there are."""

    _writer: StreamWriter
    _last_sent = math.inf
    _only: Generation | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._writer = StreamWriter.of(scope)
        self._writer.headers += _HEADERS
        await super().__call__(scope, receive, send)

    def _heard(self) -> None:
        if not self._write_at_once():
            super()._heard()

    def overdue(self, now: float) -> bool:
        patience = KEEP_ALIVE_SECONDS if self._writer.begun else HEADERS_AFTER_SECONDS
        return now - self._last_sent >= patience

    async def _run(self, send: Send) -> None:
        job = self._job
        self._events = ChunkWriter(
            chat=job.chat,
            id=self._id,
            model=self._card.model,
            created=self._created,
            usage=job.include_usage,
        )
        self._last_sent = time.monotonic()
        self._needs_pieces = job.logprobs is not None or job.wants_tokens
        self._sent_tokens = [0] * (len(job.prompts) * job.n)
        try:
            await (self._start_audibly() if self._wants_ids else self._start())
            await self._stream()
        except REFUSALS as error:
            if not self._writer.begun:
                raise
            await self._write(error_event(api_error(error)) + DONE, last=True)

    async def _start_audibly(self) -> None:
        """Start, with signs of life while the server tokenizes: that may wait for others' texts."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                task.exception()  # it is told below, unless the client has gone
            self.wake()

        starting = asyncio.create_task(self._start())
        starting.add_done_callback(ended)
        try:
            while not starting.done():
                self._news.clear()
                if self.overdue(time.monotonic()):
                    await self._write(KEEP_ALIVE)
                await self._wait()
        finally:
            if not starting.done():
                starting.cancel()
        await starting

    async def _stream(self) -> None:
        await self._echo()
        open_ones = dict(enumerate(self._generations))
        while open_ones:
            self._news.clear()
            lines: list[str] = []
            try:
                for index, generation in list(open_ones.items()):
                    if await self._advance(index, generation, lines):
                        del open_ones[index]
            finally:
                if lines:  # also before an error
                    await self._write("".join(lines).encode())
            if not open_ones:
                break
            if not lines and self.overdue(time.monotonic()):
                await self._write(KEEP_ALIVE)
            if len(self._generations) == 1 and not (
                self._needs_pieces or self._job.discards_output
            ):
                self._only = self._generations[0]
            await self._wait()
            self._only = None
        completions = [g.completion for g in self._generations if g.completion is not None]
        end = b""
        if _wants_summary(self._job) and (fields := self._summary_fields(completions)):
            end = self._events.last(fields).encode()
        await self._write(end + DONE, last=True)

    def _summary_fields(self, completions: Sequence[Completion]) -> dict[str, Any]:
        fields = self._summary(completions)
        if not self._job.include_usage:
            del fields["usage"]
        return fields

    async def _echo(self) -> None:
        if not self._job.echo:
            return
        await self._first_news()
        lines = [
            self._events.text(index, self._prompt_texts[index // self._job.n])
            for index in range(len(self._generations))
        ]
        await self._write("".join(lines).encode())

    async def _first_news(self) -> None:
        """Until every request has something to show, or one was refused."""
        while True:
            self._news.clear()
            for generation in self._generations:
                if generation.error is not None:
                    raise generation.error
            if all(g.chunks or g.finished for g in self._generations):
                return
            if self.overdue(time.monotonic()):
                await self._write(KEEP_ALIVE)
            await self._wait()

    def _write_at_once(self) -> bool:
        """Write what the only request of this answer has new, in the backend's callback: to wake
        the task for it costs as much as all else. False if the task is needed: to end, to wait for
        the client, or since it is at work."""
        generation, writer = self._only, self._writer
        if generation is None or generation.finished or self._gone or not writer.ready:
            return False
        lines = [self._event(0, chunk) for chunk in generation.chunks]
        generation.chunks.clear()
        if lines:
            writer.write("".join(lines).encode())
            self._last_sent = time.monotonic()
        return True

    def _event(
        self,
        index: int,
        chunk: Chunk,
        *,
        logprobs: str = "null",
        finish: str = "null",
        more: str = "",
    ) -> str:
        """One event, of tokens that are counted as sent."""
        self._sent_tokens[index] += len(chunk.ids)
        usage_json = self._usage_so_far() if self._job.continuous_usage else ""
        return self._events.text(
            index, chunk.text, logprobs=logprobs, finish=finish, more=more, usage=usage_json
        )

    async def _advance(self, index: int, generation: Generation, lines: list[str]) -> bool:
        """Write what a request has new; whether it has ended."""
        job, chunks = self._job, generation.chunks
        while chunks:
            chunk = chunks.popleft()
            completion = None if chunks else generation.completion
            if job.discards_output:
                continue
            logprobs, more = "null", ""
            if self._needs_pieces:
                await self._learn_of(chunk)
                logprobs = self._logprobs(index, chunk)
                if job.wants_tokens:
                    more = f',"pdv":{origins(self._service.pieces, chunk.ids, chunk.drafted)}'
            if completion is not None:
                finish = self._finish(completion)
                more += _stop_reason(completion) + self._measures_of(completion)
                lines.append(self._event(index, chunk, logprobs=logprobs, finish=finish, more=more))
                return True
            lines.append(self._event(index, chunk, logprobs=logprobs, more=more))
        if generation.error is not None:
            raise generation.error
        completion = generation.completion
        if completion is None:
            return False
        usage_json = self._usage_so_far() if job.continuous_usage else ""
        finish, more = self._finish(completion), _stop_reason(completion)
        if job.discards_output:  # nothing was asked for, so nothing ended it
            finish, more = FINISH["length"], ""
        more += self._measures_of(completion)
        lines.append(self._events.text(index, "", finish=finish, more=more, usage=usage_json))
        return True

    def _measures_of(self, completion: Completion) -> str:
        return self._measures(completion) if _wants_summary(self._job) else ""

    def _usage_so_far(self) -> str:
        prompts = sum(generation.prompt_tokens for generation in self._generations[:: self._job.n])
        return json.dumps(usage(prompts, sum(self._sent_tokens), 0))

    async def _write(self, data: bytes, *, last: bool = False) -> None:
        await self._writer.drain()
        if self._gone:
            raise Disconnected
        self._writer.write(data, last=last)
        self._last_sent = time.monotonic()


def _wants_summary(job: Job) -> bool:
    """Whether a stream ends with an event without choices."""
    return job.include_usage or job.timeline or job.wants_tokens


def _stop_reason(completion: Completion) -> str:
    reason = completion.stop_reason
    return "" if reason is None else f',"stop_reason":{json.dumps(reason)}'
