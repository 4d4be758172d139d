"""Processes that tokenize: what they answer, and real servers with one, several, and dying ones."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from server_load import Message, load, process_pid
from server_process import ServerProcess
from tiny_model import TinyPair

from pdv_mp.client.client import Client, ServerError
from pdv_mp.front.text import TextCodec
from pdv_mp.lanes.waiting import Timer
from pdv_mp.wire import tokenize as wire
from pdv_mp.workers.tokenizer_process import MAX_BATCH_BYTES, BatchTokenizer

Start = Callable[..., ServerProcess]

TEXTS = (
    "def add(first, second):\n    return first",
    "déjà vu 日本語 🙂",
    "<|endoftext|>class Point:",
    "x",
    "\x00\x01 \r\n\t",
)
WORKERS = "workers: [{name: decode, stages: [verify, draft]}, {name: prefill, stages: [prefill]}]"


@pytest.fixture
def codec(tiny_pair: TinyPair) -> TextCodec:
    return TextCodec(tiny_pair.verifier)


def received(keys: Sequence[int], texts: Sequence[str]) -> wire.Texts:
    """The message as it arrives."""
    message = wire.Texts.of(keys, [text.encode() for text in texts])
    decoded, _ = wire.decode(bytes(wire.encode(message, 0)), time.monotonic_ns())
    assert isinstance(decoded, wire.Texts)
    return decoded


def split(message: wire.Ids) -> Iterator[tuple[int, list[int]]]:
    start = 0
    for key, count in zip(message.keys.tolist(), message.counts.tolist(), strict=True):
        yield key, message.ids[start : start + count].tolist()
        start += count


def test_texts_are_tokenized_in_order_and_in_batches(codec: TextCodec) -> None:
    entered: list[int] = []
    tokenizer = BatchTokenizer(codec, entered.extend)
    assert tokenizer.step() is None
    long = "def " * (MAX_BATCH_BYTES // 4)
    texts = [*TEXTS, "", long, "y"]
    order = received(range(10, 18), texts)
    tokenizer.take(order)
    batches = [tokenizer.step(), tokenizer.step(), tokenizer.step()]
    assert tokenizer.step() is None
    found: dict[int, list[int]] = {}
    for batch in batches:
        assert batch is not None
        found.update(split(batch))
        stamps = batch.batch
        assert stamps.picked_ns <= stamps.started_ns <= stamps.ended_ns
        assert batch.orders[:, 0].tolist() == [order.stamps.encode_ns] * len(batch.keys)
        assert batch.orders[:, 3].tolist() == [order.stamps.decoded_ns] * len(batch.keys)
    assert found == {key: codec.encode(text) for key, text in enumerate(texts, 10)}
    assert entered == list(found) == list(range(10, 18))
    first, second, third = (batch for batch in batches if batch is not None)
    assert [len(batch.keys) for batch in (first, second, third)] == [6, 1, 1]
    busy = first.batch.ended_ns - first.batch.picked_ns
    assert first.busy_ns.tolist() == [0] * 6
    assert second.busy_ns.tolist() == [busy]
    assert third.busy_ns.tolist() == [busy + second.batch.ended_ns - second.batch.picked_ns]


def test_a_text_that_fails_fails_alone(codec: TextCodec, caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        def encode(self, text: str, add_special_tokens: bool) -> object:
            if text == "bad":
                raise RuntimeError(f"cannot encode {text}")
            return good.encode(text, add_special_tokens=add_special_tokens)

    good, codec.tokenizer = codec.tokenizer, Failing()  # type: ignore[assignment]
    tokenizer = BatchTokenizer(codec, lambda keys: None)
    tokenizer.take(received([1, 2, 3], ["x", "bad", "y"]))
    answer = tokenizer.step()
    assert answer is not None
    assert answer.counts.tolist() == [1, wire.FAILED, 1]
    assert "tokenizing 3 characters failed: RuntimeError" in caplog.text
    assert "bad" not in caplog.text


def test_the_process_loads_no_torch() -> None:
    program = "import sys, pdv_mp.workers.tokenizer_process; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_timer_that_was_cleared_wakes_nobody() -> None:
    timer = Timer()
    try:
        timer.set(1)
        assert select.select([timer.fd], [], [], 10)[0] == [timer.fd]
        timer.clear()
        assert select.select([timer.fd], [], [], 0)[0] == []
        timer.clear()
    finally:
        timer.close()


def texts_of(count: int) -> list[Message]:
    return [
        {
            "prompt": TEXTS[index % 2] * (1 + index % 5),
            "max_tokens": 12,
            "temperature": 0.8,
            "seed": 3000 + index,  # with these no token is decided by less than 3e-4
            "ignore_eos": True,
        }
        for index in range(count)
    ]


def answers(server: ServerProcess, requests: list[Message], kill: str = "") -> list[object]:
    """What clients are sent; the process of that name is killed again and again meanwhile."""
    with load(server) as client:
        for index, fields in enumerate(requests):
            client.generate(str(index), **fields)
            if kill and index % 60 == 30:
                os.kill(process_pid(server, kill), signal.SIGKILL)
        client.until_all_ended()
        found: list[object] = []
        for index in range(len(requests)):
            id, last = str(index), client.last[str(index)]
            ids = [token for item in client.tokens[id] for token in item["ids"]]
            text = "".join(item["text"] for item in client.tokens[id])
            found.append((ids, text, last["finish"], last["usage"]["prompt_tokens"]))
        counters = client.info()["counters"]
        assert counters["open_requests"] == counters["waiting_texts"] == 0
        return found


def test_killed_tokenizers_cost_time_and_nothing_else(start_server: Start, tmp_path: Path) -> None:
    requests = texts_of(180)
    with start_server() as unified:
        assert "tokenizer-0" not in unified.pids
        wanted = answers(unified, requests)
    table = tmp_path / "two.yaml"
    table.write_text(f"tokenizers: 2\n{WORKERS}")
    server = start_server("--topology-file", str(table), "--max-num-seqs", "16")
    assert {"tokenizer-0", "tokenizer-1"} < set(server.pids)
    assert answers(server, requests) == wanted
    with Client(server.endpoint) as client:
        before = client.info()
        assert {found["process"] for found in before["tokenizers"]} == {
            "tokenizer-0",
            "tokenizer-1",
        }
        assert sum(found["texts"] for found in before["tokenizers"]) == len(requests)
        assert all(found["texts"] for found in before["tokenizers"])
        wire_of = before["handoffs"]["front>tokenizer"]["parts"]["wire"]
        assert wire_of["n"] <= before["handoffs"]["front>tokenizer"]["messages"]
    assert answers(server, requests, kill="tokenizer-1") == wanted
    with Client(server.endpoint) as client:
        info = client.info()
        assert info["counters"]["restarts"] >= 1
        assert info["processes"]["tokenizer-0"] == server.pids["tokenizer-0"]
        assert info["counters"]["errors"] == before["counters"]["errors"]
    done = server.stop()
    assert done.code == 0
    assert "tokenizer-1 was killed by SIGKILL; it is started again" in done.stderr


def test_a_prompt_is_the_same_wherever_it_is_tokenized(
    start_server: Start, codec: TextCodec
) -> None:
    server = start_server("--topology", "pd")
    with Client(server.endpoint) as client:
        for text in TEXTS:
            assert client.tokenize(text) == codec.encode(text)
        with pytest.raises(ServerError, match="prompt is empty"):
            client.complete("")
        with pytest.raises(ServerError) as refused:
            client.complete("x y " * 300)
        assert refused.value.code == "too_large"
        done = client.complete(TEXTS[0], max_tokens=4, timeline=True)
        assert done.timeline is not None
        states = done.timeline["states"]
        assert sum(state["ns"] for state in states.values()) == done.timeline["e2e_ns"]
        crossed = [
            f"{edge}.{what}"
            for edge in ("front>tokenizer", "tokenizer>front")
            for what in ("encode", "wire", "decode")
        ]
        here = [f"tokenizer.{what}" for what in ("inbox", "batch", "compute", "publish")]
        assert {*crossed, *here} <= set(states)
        assert client.complete([20, 21], max_tokens=2, timeline=True).timeline is not None
        (found,) = client.info()["tokenizers"]
        assert found["texts"] == len(TEXTS) + 3
    assert server.stop().code == 0


@pytest.mark.slow
def test_a_delay_grows_exactly_the_wire_of_its_edge(start_server: Start) -> None:
    delay_ns = 3_000_000
    found = []
    for options in ((), ("--inject-delay", "draft>verify=3000")):
        with start_server("--topology", "pdv", *options) as server, Client(server.ipc) as client:
            for _ in range(12):
                client.complete([20, 21, 22], max_tokens=12, ignore_eos=True)
            found.append(client.info()["handoffs"])
    plain, delayed = found
    for edge in plain:
        parts, quick = delayed[edge]["parts"]["wire"], plain[edge]["parts"]["wire"]
        fastest = min(int(bucket) for bucket in parts["buckets"])
        before = min(int(bucket) for bucket in quick["buckets"])
        if edge == "draft>verify":
            assert parts["total_ns"] >= parts["n"] * delay_ns
            assert 2 ** ((fastest + 1) / 16) >= delay_ns
            assert parts["p50_us"] * 1000 < quick["p50_us"] * 1000 + 20 * delay_ns
        else:
            assert 2 ** (fastest / 16) < 2 ** ((before + 1) / 16) + delay_ns


def test_tokens_can_be_held_back_on_their_way_to_the_front(start_server: Start) -> None:
    delay_ns = 30_000_000
    server = start_server("--inject-delay", "verify>front=30000")
    with Client(server.ipc) as client:
        completion = client.complete([20, 21, 22], max_tokens=12, ignore_eos=True, timeline=True)
        assert len(completion.ids) == 12
        handoffs = client.info()["handoffs"]
        assert completion.timeline is not None
        assert completion.timeline["states"]["verify>front.wire"]["ns"] >= delay_ns
    parts = handoffs["verify>front"]["parts"]["wire"]
    assert parts["total_ns"] >= parts["n"] * delay_ns
    other = handoffs["front>verify"]["parts"]["wire"]
    assert min(2 ** (int(bucket) / 16) for bucket in other["buckets"]) < delay_ns
    assert server.stop().code == 0
