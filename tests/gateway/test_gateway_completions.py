"""What the completion endpoints answer, compared with the server's own client."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from gateway_process import events
from server_process import ServerProcess

from pdv_mp.client.client import Client

PROMPT = "def add(first, second):"
GREEDY = {"temperature": 0, "max_tokens": 24, "ignore_eos": True}


def complete(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/completions", json={"prompt": PROMPT, **GREEDY, **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def stream(http: httpx.Client, path: str = "/v1/completions", **fields: Any) -> list[dict]:
    answer = http.post(path, json={**GREEDY, "stream": True, **fields})
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    return events(answer.text)


def text_of(found: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for event in found for choice in event["choices"]]
    return "".join(choice["text"] for choice in choices if choice["index"] == index)


def test_whole_and_streamed_are_what_the_server_says(
    http: httpx.Client, http_server: ServerProcess
) -> None:
    with Client(http_server.ipc) as client:
        expected = client.generate(PROMPT, max_tokens=24, ignore_eos=True).result()
    whole = complete(http)
    assert whole["choices"][0]["text"] == expected.text
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["model"] == "tiny"
    assert whole["usage"]["completion_tokens"] == 24
    assert whole["usage"]["prompt_tokens"] == expected.usage["prompt_tokens"]
    found = stream(http, prompt=PROMPT)
    assert text_of(found) == expected.text
    finishes = [event["choices"][0]["finish_reason"] for event in found]
    assert finishes[-1] == "length"
    assert not any(finishes[:-1])
    assert len(found) < 24  # several tokens in an event: it speculates


def test_usage_is_the_last_event_and_counts(http: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    found = stream(http, prompt=PROMPT, stream_options=options)
    *chunks, last = found
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 24
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 24
    assert chunks[0]["usage"]["prompt_tokens"] == last["usage"]["prompt_tokens"]
    speculation = last["metrics"]["speculative_decoding"]
    assert speculation["num_draft_tokens"] >= speculation["num_accepted_draft_tokens"]
    assert sum(speculation["acceptance_histogram"]) == speculation["num_spec_steps"]
    assert last["metrics"]["time_to_first_token_ms"] > 0
    only = stream(http, prompt=PROMPT, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in only[:-1])


def test_prompts_in_every_form(http: httpx.Client) -> None:
    ids = http.post("/tokenize", json={"prompt": PROMPT}).json()["tokens"]
    text = complete(http)["choices"][0]["text"]
    assert complete(http, prompt=ids)["choices"][0]["text"] == text
    both = complete(http, prompt=[PROMPT, "for"])
    assert [choice["index"] for choice in both["choices"]] == [0, 1]
    assert both["choices"][0]["text"] == text
    lists = complete(http, prompt=[ids, ids])
    assert [choice["text"] for choice in lists["choices"]] == [text, text]
    assert lists["usage"]["prompt_tokens"] == 2 * len(ids)
    found = stream(http, prompt=[PROMPT, "for"])
    assert text_of(found) == text
    assert text_of(found, 1) == both["choices"][1]["text"]


def test_n_seeds_and_repeats(http: httpx.Client) -> None:
    fields = {"temperature": 1.0, "n": 3, "seed": 5}
    first, again = complete(http, **fields), complete(http, **fields)
    texts = [choice["text"] for choice in first["choices"]]
    assert texts == [choice["text"] for choice in again["choices"]]
    assert len(set(texts)) == 3
    assert texts[0] == complete(http, temperature=1.0, seed=5)["choices"][0]["text"]
    assert first["usage"]["completion_tokens"] == 72
    found = stream(http, prompt=PROMPT, **fields)
    assert [text_of(found, index) for index in range(3)] == texts


def test_seeds_of_several_completions_follow_each_other_below_zero_too(http: httpx.Client) -> None:
    first, second = complete(http, temperature=1.0, n=2, seed=-5)["choices"]
    for choice, seed in ((first, -5), (second, -4)):
        alone = complete(http, temperature=1.0, seed=seed)["choices"][0]
        assert choice["text"] == alone["text"]
    most = 2**53 - 1
    _, second = complete(http, temperature=1.0, n=2, seed=most)["choices"]
    assert second["text"] == complete(http, temperature=1.0, seed=0)["choices"][0]["text"]


def test_each_of_several_completions_has_its_measurements(http: httpx.Client) -> None:
    fields = {"n": 2, "pdv": {"timeline": True}}
    found = stream(http, prompt=PROMPT, stream_options={"include_usage": True}, **fields)
    ends = [choice for event in found for choice in event["choices"] if choice["finish_reason"]]
    whole = complete(http, **fields)
    for choices in (ends, whole["choices"]):
        assert [choice["index"] for choice in sorted(choices, key=lambda it: it["index"])] == [0, 1]
        for choice in choices:
            assert choice["metrics"]["time_to_first_token_ms"] > 0
            states = choice["timeline"]["states"]
            total = sum(state["ns"] for state in states.values())
            assert total == pytest.approx(choice["timeline"]["e2e_ns"], rel=0.01)
    assert "metrics" not in whole
    assert "timeline" not in complete(http)["choices"][0]


def test_stop_text(http: httpx.Client) -> None:
    text = complete(http)["choices"][0]["text"]
    stop = text[8:11]
    for value in (stop, [stop]):
        cut = complete(http, stop=value)["choices"][0]
        assert cut["text"] == text[: text.index(stop)]
        assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", stop)
    assert text_of(stream(http, prompt=PROMPT, stop=stop)) == text[: text.index(stop)]


def test_log_probabilities(http: httpx.Client, http_server: ServerProcess) -> None:
    with Client(http_server.ipc) as client:
        wanted = client.generate(PROMPT, max_tokens=24, ignore_eos=True, logprobs=3).result()
    choice = complete(http, logprobs=3)["choices"][0]
    found = choice["logprobs"]
    assert found["token_logprobs"] == pytest.approx([e.logprob for e in wanted.logprobs or []])
    assert all(len(top) >= 3 for top in found["top_logprobs"])
    assert found["text_offset"][0] == 0
    for token, top in zip(found["tokens"], found["top_logprobs"], strict=True):
        assert max(top, key=top.__getitem__) == token  # greedy
    pieces = [event["choices"][0]["logprobs"] for event in stream(http, prompt=PROMPT, logprobs=3)]
    streamed = [token for piece in pieces if piece for token in piece["tokens"]]
    assert streamed == found["tokens"]
    named = complete(http, logprobs=0, return_tokens_as_token_ids=True)["choices"][0]["logprobs"]
    assert named["tokens"] == [f"token_id:{id}" for id in wanted.ids]


def test_echo_gives_the_prompts_log_probabilities(
    http: httpx.Client, http_server: ServerProcess
) -> None:
    with Client(http_server.ipc) as client:
        wanted = client.generate(PROMPT, max_tokens=1, prompt_logprobs=1).result()
        ids = client.tokenize(PROMPT)
    numbers = [entry.logprob for entry in wanted.prompt_logprobs or []]
    alone = complete(http, prompt=[ids], echo=True, logprobs=1, max_tokens=0)
    found = alone["choices"][0]
    assert found["text"] == PROMPT
    assert found["logprobs"]["token_logprobs"][0] is None
    assert found["logprobs"]["token_logprobs"][1:] == pytest.approx(numbers, abs=1e-4)
    assert found["logprobs"]["text_offset"][1] == len(found["logprobs"]["tokens"][0])
    assert alone["usage"]["completion_tokens"] == 0
    more = complete(http, echo=True, logprobs=1, max_tokens=1)["choices"][0]
    assert len(more["logprobs"]["tokens"]) == len(ids) + 1
    assert more["text"].startswith(PROMPT)
    plain = complete(http, echo=True)["choices"][0]["text"]
    assert plain == PROMPT + complete(http)["choices"][0]["text"]
    assert text_of(stream(http, prompt=PROMPT, echo=True)) == plain


def test_where_tokens_come_from_and_where_time_went(http: httpx.Client) -> None:
    answer = complete(http, pdv={"tokens": True, "timeline": True})
    tokens = answer["choices"][0]["pdv"]
    assert len(tokens["ids"]) == len(tokens["drafted"]) == len(tokens["bytes"]) == 24
    data = b"".join(map(bytes, tokens["bytes"]))
    assert data.decode(errors="replace") == answer["choices"][0]["text"]
    assert 0 < sum(tokens["drafted"]) < 24
    timeline = answer["pdv"]["timeline"]
    total = sum(state["ns"] for state in timeline["states"].values())
    assert total == pytest.approx(timeline["e2e_ns"], rel=0.01)
    *_, last = stream(http, prompt=PROMPT, pdv={"tokens": True, "timeline": True})
    assert last["pdv"]["timeline"]["e2e_ns"] > 0
    plain = complete(http, pdv={"tokens": True, "speculate": False})["choices"][0]
    assert not any(plain["pdv"]["drafted"])
    assert plain["text"] == answer["choices"][0]["text"]


@pytest.mark.parametrize("several", [{"n": 2}, {"prompt": ["hello", "world"]}])
def test_a_stream_of_several_choices_with_origins_is_json_to_its_end(
    http: httpx.Client, several: dict[str, Any]
) -> None:
    fields = {"prompt": PROMPT, "pdv": {"tokens": True, "timeline": True}, **several}
    found = stream(http, **fields)
    assert {choice["index"] for event in found for choice in event["choices"]} == {0, 1}
    assert all("pdv" in choice for event in found for choice in event["choices"] if choice["text"])


def test_an_echo_alone_ends_by_its_length(http: httpx.Client) -> None:
    """Whatever the token is that was computed besides."""
    first = complete(http, max_tokens=1)["choices"][0]["text"]
    fields = {"echo": True, "max_tokens": 0, "stop": [first]}
    (whole,) = complete(http, **fields)["choices"]
    last = stream(http, prompt=PROMPT, **fields)[-1]["choices"][0]
    assert (whole["finish_reason"], last["finish_reason"]) == ("length", "length")
    assert "stop_reason" not in last


def test_chats(http: httpx.Client, http_server: ServerProcess) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Add "}, {"type": "text", "text": "1"}],
        },
    ]
    prompt = "System: Be brief.\n\nUser: Add 1\n\nAssistant:"
    with Client(http_server.ipc) as client:
        expected = client.generate(prompt, max_tokens=24, ignore_eos=True).result()
        ids = client.tokenize(prompt)
    body = {"messages": messages, "temperature": 0, "ignore_eos": True}
    answer = http.post("/v1/chat/completions", json={**body, "max_completion_tokens": 24}).json()
    choice = answer["choices"][0]
    assert choice["message"]["content"] == expected.text
    assert choice["message"]["role"] == "assistant"
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert http.post("/tokenize", json={"messages": messages}).json()["tokens"] == ids
    found = stream(http, "/v1/chat/completions", messages=messages, logprobs=True, top_logprobs=2)
    deltas = [event["choices"][0]["delta"] for event in found]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == expected.text
    contents = [event["choices"][0]["logprobs"] for event in found]
    entries = [entry for content in contents if content for entry in content["content"]]
    assert len(entries) == 24
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
    assert bytes(entries[0]["bytes"]).decode(errors="replace")
    # Without a limit a chat may fill the context.
    long = http.post("/v1/chat/completions", json=body).json()
    assert (
        long["usage"]["total_tokens"] == http.get("/v1/models").json()["data"][0]["max_model_len"]
    )


def test_texts_and_ids(http: httpx.Client) -> None:
    answer = http.post("/tokenize", json={"prompt": "café 🙂"}).json()
    assert answer["count"] == len(answer["tokens"])
    assert http.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {
        "prompt": "café 🙂"
    }


def test_facts(http: httpx.Client, http_server: ServerProcess) -> None:
    assert http.get("/health").status_code == 200
    card = http.get("/v1/models").json()["data"][0]
    assert card["id"] == "tiny"
    assert http.get("/v1/models/tiny").json() == card
    assert http.get("/v1/models/other").status_code == 404
    assert http.get("/version").json()["version"]
    complete(http)
    info = http.get("/server_info").json()
    assert info["processes"].keys() >= {"front", "worker-0"}
    assert info["internal_states"][0]["avg_spec_accept_length"] > 1
    counters = http.get("/metrics")
    assert counters.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "vllm:spec_decode_num_drafts_total{" in counters.text
    assert http.head("/metrics").status_code == 200
    paths = http.get("/openapi.json").json()["paths"]
    assert "/v1/chat/completions" in paths
    named = http.get("/version", headers={"x-request-id": "mine-1"})
    assert named.headers["x-request-id"] == "mine-1"
