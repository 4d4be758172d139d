"""The openai client, as programs use it."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_completions_and_chats(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    whole = client.completions.create(
        model=model.id, prompt="def add(", max_tokens=16, temperature=0, logprobs=2
    )
    assert whole.usage is not None
    assert whole.choices[0].logprobs is not None
    parts = client.completions.create(
        model=model.id,
        prompt="def add(",
        max_tokens=16,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(parts)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    messages: list = [{"role": "user", "content": "hello"}]
    chat = client.chat.completions.create(
        model=model.id,
        messages=messages,
        max_completion_tokens=16,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
        n=2,
    )
    assert len(chat.choices) == 2
    assert chat.choices[0].logprobs is not None
    with client.chat.completions.create(
        model=model.id, messages=messages, max_tokens=16, temperature=0, stream=True
    ) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == chat.choices[0].message.content


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model="tiny", prompt="x", temperature=-1)
    assert wrong.value.param == "temperature"
    assert wrong.value.code == "bad_request"
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="tiny", prompt="x", frequency_penalty=0.5)
    assert refused.value.param == "frequency_penalty"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt=[5] * 400, max_tokens=400)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="x")
