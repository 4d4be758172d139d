"""An answer in one body."""

from __future__ import annotations

import json
from typing import Any

from starlette.types import Send

from gateway.answers import Answer, respond_with
from gateway.chunks import FINISH
from gateway.token_logprobs import ids_in, origins
from pdv_mp.client.client_core import Completion


class WholeAnswer(Answer):
    """Everything in one body, when all completions have ended."""

    async def _run(self, send: Send) -> None:
        await self._start()
        completions = await self._completions()
        choices = [
            await self._choice(index, completion) for index, completion in enumerate(completions)
        ]
        head = {
            "id": self._id,
            "object": "chat.completion" if self._job.chat else "text_completion",
            "created": self._created,
            "model": self._card.model,
        }
        tail = self._summary(completions)
        body = (f'{_json(head)[:-1]},"choices":[{",".join(choices)}],{_json(tail)[1:]}').encode()
        await respond_with(send, 200, [(b"content-type", b"application/json")], body)

    async def _completions(self) -> list[Completion]:
        waiting = list(self._generations)
        while waiting:
            self._news.clear()
            for generation in list(waiting):
                if generation.error is not None:
                    raise generation.error
                if generation.finished:
                    waiting.remove(generation)
            if waiting:
                await self._wait()
        return [
            generation.completion
            for generation in self._generations
            if generation.completion is not None
        ]

    async def _choice(self, index: int, completion: Completion) -> str:
        job, number = self._job, index // self._job.n
        finish = self._finish(completion)
        if job.echo and completion.prompt_logprobs is not None:
            ids = self._prompt_ids[number]
            await self._learn(ids_in(completion.prompt_logprobs) | {ids[0]})
        await self._learn_of(completion)
        text = "" if job.discards_output else completion.text
        if job.chat:
            message = f'{{"role":"assistant","content":{json.dumps(text)},"refusal":null}}'
            what = f'"message":{message},"logprobs":{self._logprobs(index, completion)}'
        else:
            if job.echo:
                text = self._prompt_texts[number] + text
            logprobs = self._completion_logprobs(index, completion)
            what = f'"text":{json.dumps(text)},"logprobs":{logprobs}'
        more = f',"stop_reason":{json.dumps(completion.stop_reason)}'
        if job.wants_tokens:
            more += f',"pdv":{origins(self._service.pieces, completion.ids, completion.drafted)}'
        more += self._measures(completion)
        if job.discards_output:
            finish = FINISH["length"]
        return f'{{"index":{index},{what},"finish_reason":{finish}{more}}}'

    def _completion_logprobs(self, index: int, completion: Completion) -> str:
        job = self._job
        prompt = completion.prompt_logprobs
        if not job.echo or prompt is None:
            return self._logprobs(index, completion)
        entries = list(prompt)
        if not job.discards_output:
            entries += completion.logprobs or []
        first = self._prompt_ids[index // job.n][0]
        return self._written[index].completion(entries, job.logprobs or 0, first)


def _json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, separators=(",", ":"))
