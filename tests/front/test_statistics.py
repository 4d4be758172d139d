"""What the front counts of requests, and what stays of schedulers that are gone."""

from __future__ import annotations

import select
import time
from collections.abc import Mapping
from typing import Any

from front.front_harness import Entry, FakeClient, FrontUnderTest

from pdv_mp.front.sums import Departed, merged
from pdv_mp.front.usage import UsageAccount, UsageQuestions
from pdv_mp.metrics.histogram import LATENCY_BOUNDS_NS
from pdv_mp.wire import engine as wire
from pdv_mp.wire.engine import Finish


def ask(front: FrontUnderTest, client: FakeClient, **answer: Any) -> dict[str, Any]:
    """The front's ``info``, for which the engine says ``answer``."""
    client.send("info")
    question = front.engine.receive(wire.InfoRequest)
    front.engine.send(wire.InfoReply(number=question.number, info=answer))
    return client.expect("info")


def begin(front: FrontUnderTest, client: FakeClient, id: str, **fields: Any) -> int:
    """The key of a request that has been opened."""
    client.send("generate", id=id, **{"prompt_ids": [5, 6, 7], **fields})
    client.expect("accepted", id=id)
    key: int = front.engine.receive(wire.Open).request
    return key


def test_tokens_cycles_and_latencies_are_counted(front: FrontUnderTest) -> None:
    client = front.client()
    first = begin(front, client, "a")
    front.engine.emit(Entry(first, [9], cached=2))
    front.engine.emit(Entry(first, [9, 8, 7], drafted=4, accepted=2))
    front.engine.emit(Entry(first, [9], drafted=4, accepted=0, finish=Finish.LENGTH))
    client.until_last("a")
    second = begin(front, client, "b")
    front.engine.emit(Entry(second, [9]))
    client.expect("tokens", id="b")
    client.send("cancel", id="b")
    client.until_last("b")
    front.engine.receive(wire.Close)
    served = ask(front, client)["served"]
    assert served["prompt_tokens"] == 6
    assert served["cached_tokens"] == 2
    assert served["generation_tokens"] == 6
    assert served["good_requests"] == 1, "one that was cancelled is not good"
    assert served["drafted_lengths"][:6] == [0, 0, 0, 0, 2, 0]
    assert served["accepted_lengths"][:4] == [1, 0, 1, 0]
    counts = {name: sum(found["counts"]) for name, found in served["latencies"].items()}
    assert counts == {
        "time_to_first_token": 2,
        "inter_token": 2,
        "time_per_output_token": 1,
        "end_to_end": 1,
        "queue": 1,
        "prefill": 1,
        "decode": 1,
    }
    sums = {name: found["sum"] for name, found in served["latencies"].items()}
    assert sums["inter_token"] == sums["decode"] <= sums["end_to_end"]
    assert sums["queue"] + sums["prefill"] + sums["decode"] <= sums["end_to_end"]
    assert served["latency_bounds_ns"] == list(LATENCY_BOUNDS_NS)
    assert served["tokens"]["generation"]["sum"] == 5
    assert served["tokens"]["prompt"]["sum"] == 3


def test_tokens_that_nobody_waits_for_count_from_when_the_scheduler_had_them(
    front: FrontUnderTest,
) -> None:
    client = front.client()
    key = begin(front, client, "a", stream=False)
    front.engine.emit(Entry(key, [9]))
    second = time.monotonic_ns() + 10**9
    front.engine.emit(Entry(key, [8]), emitted_ns=second)
    front.engine.emit(Entry(key, [7, 6]), emitted_ns=second + 10**9)
    front.engine.emit(Entry(key, [5], finish=Finish.LENGTH), emitted_ns=second + 3 * 10**9)
    client.until_last("a")
    found = ask(front, client)["served"]["latencies"]["inter_token"]
    bounds = [*LATENCY_BOUNDS_NS, 10**18]
    over = [bound for bound, count in zip(bounds, found["counts"], strict=True) if count]
    assert sum(found["counts"]) == 3
    assert abs(found["sum"] - 4 * 10**9) < 5 * 10**8
    assert all(bound >= 5 * 10**8 for bound in over)


def test_who_waits_for_tokens_is_told_to_the_scheduler(front: FrontUnderTest) -> None:
    client = front.client()
    awaited = {}
    for id, fields in {
        "streamed": {},
        "whole": {"stream": False},
        "stops": {"stream": False, "stop": ["lazy"]},
        "timeline": {"stream": False, "timeline": True},
    }.items():
        client.send("generate", id=id, prompt_ids=[5, 6, 7], **fields)
        client.expect("accepted", id=id)
        message = front.engine.receive(wire.Open)
        awaited[id] = message.at_once
        front.engine.emit(Entry(message.request, [9], finish=Finish.LENGTH))
        client.until_last(id)
    assert awaited == {"streamed": True, "whole": False, "stops": True, "timeline": True}


def test_cycles_of_a_request_that_a_stop_text_ended_count(
    front: FrontUnderTest, codec: Any
) -> None:
    client = front.client()
    key = begin(front, client, "a", stop=["lazy"])
    ids = codec.encode("the lazy dog")
    front.engine.emit(Entry(key, ids, drafted=3, accepted=3))
    client.until_last("a")
    front.engine.receive(wire.Close)
    front.engine.emit(Entry(key, [9], drafted=3, accepted=1))
    front.engine.emit(Entry(key, finish=Finish.ABORT))
    served = ask(front, client)["served"]
    assert served["drafted_lengths"][3] == 2
    assert served["generation_tokens"] <= len(ids)


def test_the_processes_cores_are_told(front: FrontUnderTest) -> None:
    info = ask(front, front.client())
    assert info["cpu"]["front"]["seconds"] > 0
    assert info["cpu"]["front"]["threads"] >= 1
    assert info["cpu"]["front"]["pid"] == info["processes"]["front"]
    assert info["gpus"] == []
    assert set(info["restarts"].values()) == {0}


class BrokenAccount(UsageAccount):
    """Fails at every second question."""

    def __init__(self) -> None:
        super().__init__(on_gpu=False)
        self.asked = 0

    def of(self, processes: Mapping[str, int]) -> dict[str, Any]:
        self.asked += 1
        if self.asked % 2:
            raise RuntimeError("no answer this time")
        return {"memory": dict(processes)}


def test_whoever_asks_what_processes_use_gets_an_answer() -> None:
    questions = UsageQuestions(BrokenAccount())
    found: list[Any] = []
    try:
        for number in range(4):
            questions.ask({"front": number}, lambda usage: found.append(usage["memory"]))
        while len(found) < 4:
            assert select.select([questions.fd], [], [], 60)[0]
            questions.take()
    finally:
        questions.close()
    assert found == [{}, {"front": 1}, {}, {"front": 3}]


def answer(count: int, length: str) -> dict[str, Any]:
    return {
        "counters": {"verify_cycles": count, "open": 3},
        "batch_totals": {"verify": {"batches": count}},
        "handoffs": {"draft>verify": {"messages": count, "parts": {}}},
        "speculation": {"method": "ngram", "lengths": {length: count}, "controllers": [{}]},
        "pools": {"slots": 4},
        "batches": [{}],
    }


def test_what_a_scheduler_had_counted_stays_when_it_dies() -> None:
    departed = Departed()
    departed.died(0)
    assert departed.counts == {}
    departed.heard(0, answer(5, "4"))
    departed.heard(0, answer(7, "4"))
    assert departed.counts == {}, "while it lives it says so itself"
    departed.died(0)
    departed.died(0)
    departed.heard(0, answer(2, "0"))
    departed.died(0)
    departed.heard(1, answer(100, "8"))
    assert departed.counts == {
        "counters": {"verify_cycles": 9},
        "batch_totals": {"verify": {"batches": 9}},
        "handoffs": {"draft>verify": {"messages": 9, "parts": {}}},
        "speculation": {"method": "ngram", "lengths": {"4": 7, "0": 2}},
    }
    total = merged([answer(1, "8"), departed.counts])
    assert total["counters"] == {"verify_cycles": 10, "open": 3}
    assert total["pools"] == {"slots": 4}
    assert total["speculation"]["lengths"] == {"8": 1, "4": 7, "0": 2}
