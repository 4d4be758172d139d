"""What both forms of an answer, whole and streamed, share."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.chunks import FINISH
from gateway.errors import ApiError, api_error
from gateway.jobs import Job, new_id
from gateway.measures import metrics, usage_of
from gateway.model_card import ModelCard
from gateway.stream_writer import StreamWriter
from gateway.token_logprobs import LogprobsWriter, ids_in
from pdv_mp.client.client_core import Chunk, Completion, Generation, ServerError, ServerUnreachable
from pdv_mp.sampling_params import ParameterError

if TYPE_CHECKING:
    from gateway.service import GatewayService


LARGE_PROMPT = 10_000
"""Characters or tokens from which on a prompt is sent once and then listened for."""


class Disconnected(Exception):
    """The client has gone."""


class Answer(Response):
    """Runs one call as its own response. Its task waits for what the server sends, and is woken
    when the connection ends; leaving it in any way cancels what is still open."""

    def __init__(self, service: GatewayService, job: Job, card: ModelCard) -> None:
        super().__init__()
        self._service = service
        self._job = job
        self._card = card
        self._id = new_id(job.chat)
        self._created = int(time.time())
        self._news = asyncio.Event()
        self._generations: list[Generation] = []
        self._prompt_ids: dict[int, list[int]] = {}
        self._prompt_texts: dict[int, str] = {}
        self._written = [
            LogprobsWriter(service.pieces, job.names_ids) for _ in range(len(job.prompts) * job.n)
        ]
        self._gone = False

    def wake(self) -> None:
        """There may be something to do."""
        self._news.set()

    def _heard(self) -> None:
        """The backend has something new of one of our requests."""
        self._news.set()

    def overdue(self, now: float) -> bool:
        """Whether it has been silent for so long that it should say that it lives."""
        return False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        StreamWriter.of(scope).on_hangup(self._hung_up)
        self._service.begin(self)
        try:
            await self._run(send)
        except Disconnected:
            pass
        except REFUSALS as error:
            await respond(send, api_error(error))
        finally:
            self._service.end(self)
            for generation in self._generations:
                self._service.backend.abandon(generation)

    def _hung_up(self) -> None:
        self._gone = True
        self._news.set()

    async def _run(self, send: Send) -> None:
        raise NotImplementedError

    @property
    def _wants_ids(self) -> bool:
        """Whether prompts have to be tokenized before they are sent."""
        job = self._job
        return job.fills_context or (job.echo and job.logprobs is not None)

    async def _start(self) -> None:
        """Ask the server for everything. Raises ServerError, ParameterError, ApiError."""
        job = self._job
        prompts: list[str | list[int]] = list(job.prompts)
        for number, prompt in enumerate(job.prompts):
            if self._gone:
                raise Disconnected
            if isinstance(prompt, str):
                self._prompt_texts[number] = prompt
                if self._wants_ids:
                    prompts[number] = await self._tokenize(prompt)
            elif job.echo:
                self._prompt_texts[number] = await self._detokenize(prompt)
            ids = prompts[number]
            if not isinstance(ids, str):
                self._prompt_ids[number] = ids
        if self._gone:
            raise Disconnected
        for number, prompt in enumerate(prompts):
            for turn in range(job.n):
                self._submit(number * job.n + turn, prompt)
                if len(prompt) > LARGE_PROMPT:
                    await self._first_refusal()

    async def _first_refusal(self) -> None:
        """Let the server's answers come in: a prompt that it refuses is not sent again and again,
        and nobody else waits until all have been sent."""
        await asyncio.sleep(0)
        if self._gone:
            raise Disconnected
        refused = next((each.error for each in self._generations if each.error is not None), None)
        if refused is not None:
            raise refused

    def _submit(self, index: int, prompt: str | list[int]) -> None:
        job = self._job
        params = job.params_of(index)
        if job.fills_context and not isinstance(prompt, str):
            room = max(1, self._card.room - len(prompt))
            params = replace(params, max_tokens=min(room, self._card.room - 1))
        generation = self._service.backend.generate(
            prompt,
            params,
            self._heard,
            stream=job.stream or job.wants_tokens,
            timeline=job.timeline,
            add_special_tokens=job.add_special_tokens,
        )
        self._generations.append(generation)

    async def _tokenize(self, text: str) -> list[int]:
        ids: list[int] = await self._service.tokenize(text, self._job.add_special_tokens)
        if not ids:
            raise ApiError("bad_request", "prompt is empty", "prompt")
        return ids

    async def _detokenize(self, ids: list[int]) -> str:
        answer = await self._service.backend.ask("detokenize", ids=ids)
        return str(answer["text"])

    async def _wait(self) -> None:
        """Until there is news. Raises Disconnected."""
        if self._gone:
            raise Disconnected
        await self._news.wait()
        if self._gone:
            raise Disconnected

    async def _learn(self, ids: set[int]) -> None:
        if self._service.pieces.missing(ids):
            await self._service.pieces.learn(ids, self._card.max_model_len)

    async def _learn_of(self, chunk: Chunk | Completion) -> None:
        """Get to know all tokens that the answer will name."""
        ids: set[int] = set()
        if chunk.logprobs is not None:
            ids |= ids_in(chunk.logprobs)
        if self._job.wants_tokens:
            ids |= set(chunk.ids)
        if ids:
            await self._learn(ids)

    def _logprobs(self, index: int, chunk: Chunk | Completion) -> str:
        if chunk.logprobs is None:
            return "null"
        writer = self._written[index]
        if self._job.chat:
            return writer.chat(chunk.logprobs)
        return writer.completion(chunk.logprobs, self._job.logprobs or 0)

    def _finish(self, completion: Completion) -> str:
        """``finish_reason`` as JSON. Raises ApiError for a request that the server has aborted."""
        if completion.finish not in FINISH:
            raise ApiError("draining", "the server has ended this request; it is shutting down")
        return FINISH[completion.finish]

    def _measures(self, completion: Completion) -> str:
        """Of one of several choices, what the whole call says of a single one; fields as JSON."""
        if len(self._generations) == 1:
            return ""
        found = f',"metrics":{_object(metrics(completion))}'
        if completion.timeline is not None:
            found += f',"timeline":{_object(completion.timeline)}'
        return found

    def _summary(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Usage and what else is said of a whole call."""
        job = self._job
        found: dict[str, Any] = {
            "usage": usage_of(completions, job.n, discards_output=job.discards_output)
        }
        if len(completions) == 1:
            found["metrics"] = metrics(completions[0])
            if job.timeline or job.wants_tokens:
                (completion,) = completions
                extension = {"seed": completion.seed, "speculation": completion.speculation}
                if completion.timeline is not None:
                    extension["timeline"] = completion.timeline
                found["pdv"] = extension
        return found


REFUSALS = (ApiError, ServerError, ServerUnreachable, ParameterError)
"""What may come in place of an answer."""


def _object(fields: dict[str, Any]) -> str:
    return json.dumps(fields, separators=(",", ":"))


async def respond(send: Send, error: ApiError) -> None:
    """Answer with an error."""
    await respond_with(send, error.status, error.headers(), error.body())


async def respond_with(
    send: Send, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes
) -> None:
    """Answer with a whole body."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body, "more_body": False})
