"""Client and AsyncClient: the shared core by itself, and both against a real front."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from front.front_harness import Entry, FrontUnderTest, small_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from pdv_mp.client.client import (
    DEFAULT_CONNECT_TIMEOUT,
    DEFAULT_TIMEOUT,
    AsyncClient,
    Client,
    Completion,
    ServerError,
    ServerUnreachable,
    TokenLogprob,
)
from pdv_mp.client.client_core import SILENCE_SECONDS, ClientCore
from pdv_mp.sampling_params import ParameterError, SamplingParams
from pdv_mp.wire import control as control_wire
from pdv_mp.wire import engine as wire
from pdv_mp.wire.engine import Finish


def pack(type: str, **fields: Any) -> bytes:
    frame: bytes = msgpack.packb({"v": 1, "type": type, **fields})
    return frame


def sent(core: ClientCore) -> list[dict[str, Any]]:
    """What the core wants to send, decoded and taken."""
    messages = [msgpack.unpackb(frame) for frame in core.outgoing]
    core.outgoing.clear()
    return messages


OUTPUT = "".join(chr(0x61 + index % 26) for index in range(200))


@dataclasses.dataclass
class ScriptedServer:
    """Serves one request whose n-th token is n and adds the n-th character of OUTPUT."""

    id: str
    length: int
    instance: int = 0
    offset: int = 0
    seq: int = 0

    def accept(self) -> bytes:
        self.offset = self.seq = 0
        return pack("accepted", id=self.id, prompt_tokens=1, seed=5)

    def tokens(self, count: int, lag: int) -> bytes:
        """``count`` more tokens; their text is complete except for the last ``lag`` characters."""
        end = min(self.offset + count, self.length)
        text_start = getattr(self, "_text", 0) if self.offset else 0
        text_end = max(text_start, end - lag) if end < self.length else end
        self._text = text_end
        message = pack(
            "tokens",
            id=self.id,
            seq=self.seq,
            offset=self.offset,
            ids=list(range(self.offset, end)),
            drafted=[index % 2 for index in range(self.offset, end)],
            text=OUTPUT[text_start:text_end],
            logprobs=[
                {"id": index, "logprob": -index / 2, "top": [[index + 1, -0.25]]}
                for index in range(self.offset, end)
            ],
        )
        self.offset, self.seq = end, self.seq + 1
        return message

    def done(self) -> bytes:
        return pack("done", id=self.id, finish="length", stop_reason=None, usage={})

    def alive(self) -> bytes:
        return pack("alive", instance=str(self.instance), connection=1)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_stream_survives_any_number_of_restarts(data: st.DataObject) -> None:
    """However messages are cut and whenever the server is replaced: the same tokens and text."""
    core = ClientCore("tcp://nowhere", 1000.0, 1000.0, None)
    core.connected(0.0)
    params = SamplingParams(seed=5, logprobs=1)
    generation = core.submit("x", params, 0.0, stream=True, timeline=False, id=None)
    assert [item["type"] for item in sent(core)] == ["hello", "generate"]
    server = ScriptedServer(generation.id, length=data.draw(st.integers(1, 60)))
    now = 0.0
    core.receive(server.alive(), now)
    core.receive(server.accept(), now)
    kinds = st.sampled_from(["tokens", "tokens", "tokens", "restart", "silence"])
    steps = data.draw(st.lists(kinds, max_size=20)) + ["tokens"] * 60
    for step in steps:
        if generation.finished:
            break
        now += 0.1
        if step == "tokens":
            core.receive(
                server.tokens(data.draw(st.integers(1, 9)), data.draw(st.integers(0, 3))), now
            )
            if server.offset == server.length:
                core.receive(server.done(), now)
        elif step == "restart":
            server.instance += 1
            core.receive(server.alive(), now)
            resent = [item for item in sent(core) if item["type"] == "generate"]
            assert [item["seed"] for item in resent] == [5]
            if data.draw(st.booleans()):  # an earlier copy of it had arrived already
                core.receive(server.accept(), now)
                core.receive(
                    pack(
                        "error", id=generation.id, code="duplicate_id", message="", retryable=False
                    ),
                    now,
                )
            else:
                core.receive(server.accept(), now)
        else:
            now += SILENCE_SECONDS
            core.tick(now)
            assert core.wants_new_socket
            core.connected(now)
            assert [item["type"] for item in sent(core)] == ["hello", "generate"]
            core.receive(server.alive(), now)
            core.receive(server.accept(), now)
    assert generation.completion is not None
    assert generation.completion.ids == list(range(server.length))
    assert generation.completion.text == OUTPUT[: server.length]
    assert generation.completion.drafted == [index % 2 for index in range(server.length)]
    assert "".join(chunk.text for chunk in generation.chunks) == OUTPUT[: server.length]
    assert [id for chunk in generation.chunks for id in chunk.ids] == list(range(server.length))
    logprobs = [
        TokenLogprob(index, -index / 2, ((index + 1, -0.25),)) for index in range(server.length)
    ]
    assert generation.completion.logprobs == logprobs
    assert [entry for chunk in generation.chunks for entry in chunk.logprobs or []] == logprobs
    assert not core.busy


def open_core() -> tuple[ClientCore, Any]:
    core = ClientCore("tcp://nowhere", 20.0, 5.0, None)
    core.connected(0.0)
    generation = core.submit("x", SamplingParams(), 0.0, stream=True, timeline=False, id="a")
    sent(core)
    return core, generation


def test_silence_asks_then_reconnects_then_gives_up() -> None:
    core, generation = open_core()
    core.receive(pack("alive", instance="1", connection=1), 0.0)
    core.tick(1.0)
    assert sent(core) == []
    core.tick(1.6)
    assert [item["type"] for item in sent(core)] == ["ping"]
    core.tick(1.7)
    assert sent(core) == []
    core.tick(5.1)
    assert core.wants_new_socket
    core.connected(5.1)
    assert [item["type"] for item in sent(core)] == ["hello", "generate"]
    core.tick(20.0)
    assert isinstance(generation.error, ServerUnreachable)
    assert "tcp://nowhere" in str(generation.error)
    assert not core.busy


def queue_full(id: str, milliseconds: int = 200) -> bytes:
    fields = {"code": "queue_full", "message": "", "retryable": True}
    return pack("error", id=id, retry_after_ms=milliseconds, **fields)


def refused_core(queue_timeout: float) -> tuple[ClientCore, Any]:
    core = ClientCore("tcp://nowhere", 20.0, 5.0, None, queue_timeout=queue_timeout)
    core.connected(0.0)
    generation = core.submit("x", SamplingParams(), 0.0, stream=True, timeline=False, id="a")
    sent(core)
    core.receive(queue_full("a"), 1.0)
    return core, generation


def test_a_full_server_is_asked_again_when_it_said() -> None:
    core, generation = refused_core(queue_timeout=0.5)
    assert core.seconds_to_tick(1.0) == pytest.approx(0.2)
    core.tick(1.19)
    assert sent(core) == []
    core.tick(1.2)
    assert [item["type"] for item in sent(core)] == ["generate"]
    core.tick(1.3)
    assert sent(core) == []
    core.receive(queue_full("a"), 1.3)
    core.tick(1.5)
    assert [item["type"] for item in sent(core)] == ["generate"]
    assert generation.error is None
    core.receive(queue_full("a"), 1.5)  # 0.5 s after the first refusal it gives up
    assert generation.error.code == "queue_full"
    assert generation.error.retry_after_ms == 200
    assert not core.busy


def test_each_time_that_a_server_is_full_has_its_own_patience() -> None:
    core, generation = refused_core(queue_timeout=0.5)
    core.tick(1.2)
    core.receive(pack("accepted", id="a", prompt_tokens=1, seed=1), 1.3)
    core.connected(90.0)
    core.receive(queue_full("a"), 90.0)  # of the server that has taken its place
    assert generation.error is None
    core.tick(90.2)
    assert [item["type"] for item in sent(core)][-1] == "generate"


def test_a_full_server_is_an_error_at_once_if_that_is_wanted() -> None:
    _, generation = refused_core(queue_timeout=0.0)
    assert generation.error.code == "queue_full"


def test_cancelling_and_reconnecting_while_the_server_is_full() -> None:
    core, generation = refused_core(queue_timeout=60.0)
    core.connected(1.1)
    assert [item["type"] for item in sent(core)] == ["hello", "generate"]
    core.tick(1.3)
    assert sent(core) == []  # it is on its way already
    core.receive(queue_full("a"), 1.4)
    core.cancel("a")
    assert generation.completion.finish == "abort"
    core.tick(2.0)
    assert sent(core) == []
    late, generation = refused_core(queue_timeout=60.0)
    late.tick(1.2)
    late.cancel("a")
    late.receive(queue_full("a"), 1.3)  # sent before the cancel, which the server ignored
    assert generation.completion.finish == "abort"


def test_a_server_that_was_never_heard_is_given_up_early() -> None:
    core, generation = open_core()
    core.tick(4.9)
    assert generation.error is None
    core.tick(5.0)
    assert isinstance(generation.error, ServerUnreachable)
    assert "5 s" in str(generation.error)


def test_the_defaults_leave_time_to_send_again() -> None:
    assert DEFAULT_CONNECT_TIMEOUT <= SILENCE_SECONDS < 2 * SILENCE_SECONDS < DEFAULT_TIMEOUT


def test_text_and_ids_that_cannot_be_sent() -> None:
    core, _ = open_core()

    def submit(prompt: Any, **parameters: Any) -> None:
        params = SamplingParams(**parameters)
        core.submit(prompt, params, 0.0, stream=True, timeline=False, id="b")

    with pytest.raises(ParameterError, match="prompt is not valid Unicode text: character 4"):
        submit("caf\udce9")
    with pytest.raises(ParameterError, match="stop is not valid Unicode"):
        submit("x", stop=("\ud800",))
    with pytest.raises(ParameterError, match="prompt is not valid Unicode"):
        core.ask("tokenize", 0.0, prompt="\udcff")
    for prompt in ([1.5, 2], [None], 7):
        with pytest.raises(TypeError, match="prompt must be text or a list of token ids"):
            submit(prompt)
    with pytest.raises(ParameterError, match="prompt holds"):
        submit([2**53])
    with pytest.raises(TypeError, match="ids must be"):
        core.ask("detokenize", 0.0, ids=["1"])
    assert sent(core) == []
    submit(np.array([3, 4]))
    assert sent(core)[0]["prompt_ids"] == [3, 4]


BAD_ENDPOINTS = [
    "tcp://127.0.0.1",
    "tcp://127.0.0.1:99999",
    "nonsense",
    "inproc://a",
    "http://a:1",
    "ipc://" + "x" * 200,
]


@pytest.mark.parametrize("endpoint", BAD_ENDPOINTS)
def test_an_endpoint_of_another_form(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be connected to.*tcp://HOST:PORT"):
        Client(endpoint)

    async def use() -> None:
        async with AsyncClient(endpoint) as client:
            for _ in range(2):
                with pytest.raises(ValueError, match="cannot be connected to"):
                    await client.complete("x")

    asyncio.run(use())


def test_who_waits_for_a_client_that_is_closed_is_told() -> None:
    async def use() -> None:
        client = AsyncClient("tcp://127.0.0.1:1")
        waiting = [asyncio.create_task(client.info()), asyncio.create_task(client.complete("x"))]
        await asyncio.sleep(0.05)
        await client.close()
        for task in waiting:
            with pytest.raises(ServerUnreachable, match="the client was closed"):
                await asyncio.wait_for(task, 10)

    asyncio.run(use())


def test_a_gap_is_an_error_and_not_a_wrong_text() -> None:
    core, generation = open_core()
    core.receive(pack("accepted", id="a", prompt_tokens=1, seed=1), 0.0)
    fields = {"ids": [1], "drafted": [0], "text": "x"}
    core.receive(pack("tokens", id="a", seq=1, offset=0, **fields), 0.0)
    assert isinstance(generation.error, ServerError)
    assert [item["type"] for item in sent(core)] == ["cancel"]


def test_what_was_sent_twice_is_cancelled() -> None:
    core, _ = open_core()
    core.receive(pack("done", id="a", finish="length"), 0.0)
    core.receive(pack("accepted", id="a", prompt_tokens=1, seed=1), 0.0)
    assert [(item["type"], item["id"]) for item in sent(core)] == [("cancel", "a")]


def test_ids_that_are_open_and_messages_that_are_too_large() -> None:
    core, _ = open_core()
    with pytest.raises(ValueError, match="is open"):
        core.submit("y", SamplingParams(), 0.0, stream=True, timeline=False, id="a")
    with pytest.raises(ServerError, match="too_large"):
        core.submit("y" * 2**22, SamplingParams(), 0.0, stream=True, timeline=False, id="b")
    core.cancel("b")
    assert sent(core) == []


class Worker(threading.Thread):
    """Answers each Open of a front with its prompt reversed, repeated up to max_tokens."""

    def __init__(self, front: FrontUnderTest) -> None:
        super().__init__(name="worker-under-test")
        self.front = front
        self.halt = threading.Event()
        self.silent = False
        self.open: dict[int, list[int]] = {}

    def run(self) -> None:
        socket = self.front.engine.socket
        while not self.halt.is_set():
            if socket.poll(20 if not self.open else 0):
                message, _ = wire.decode(socket.recv(), time.monotonic_ns())
                if isinstance(message, wire.Open):
                    ids = message.prompt_ids.tolist()[::-1] * message.max_tokens
                    self.open[message.request] = ids[: message.max_tokens]
                elif isinstance(message, wire.Close):
                    for key in message.requests.tolist():
                        if self.open.pop(key, None) is not None:
                            self.front.engine.emit(Entry(key, finish=Finish.ABORT))
                elif isinstance(message, wire.InfoRequest):
                    info = {"counters": {"tokens": 1}}
                    self.front.engine.send(wire.InfoReply(number=message.number, info=info))
            if self.silent:
                continue
            entries = []
            for key, left in list(self.open.items()):
                now, self.open[key] = left[:2], left[2:]
                finish = Finish.NONE if self.open[key] else Finish.LENGTH
                entries.append(Entry(key, now, drafted=2, accepted=1, finish=finish))
                if not self.open[key]:
                    del self.open[key]
            if entries:
                self.front.engine.emit(*entries)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., tuple[FrontUnderTest, Worker]]]:
    """Makes fronts with a worker."""
    small_tokenizer().save(str(tmp_path / "tokenizer.json"))
    made: list[tuple[FrontUnderTest, Worker]] = []

    def make(**options: Any) -> tuple[FrontUnderTest, Worker]:
        front = FrontUnderTest(tmp_path, **options).start()
        worker = Worker(front)
        worker.start()
        made.append((front, worker))
        return front, worker

    yield make
    for front, worker in made:
        worker.halt.set()
        worker.join()
        front.close()


Served = Callable[..., tuple[FrontUnderTest, Worker]]


def expected(prompt: list[int], count: int) -> list[int]:
    return (prompt[::-1] * count)[:count]


def test_generate_streams_and_completes(served: Served) -> None:
    front, _ = served()
    with Client(front.endpoint) as client:
        stream = client.generate([1, 2, 3], max_tokens=7, stop=["never"])
        chunks = list(stream)
        assert [id for chunk in chunks for id in chunk.ids] == expected([1, 2, 3], 7)
        completion = stream.completion
        assert completion is not None
        assert completion.finish == "length"
        assert completion.text == "".join(chunk.text for chunk in chunks)
        assert completion.text == client.detokenize(completion.ids)
        assert completion.drafted == [1, 0, 1, 0, 1, 0, 1]
        assert completion.usage["completion_tokens"] == 7
        assert completion.speculation["accepted_per_pos"] == [4, 0]
        whole = client.complete([1, 2, 3], SamplingParams(max_tokens=7, seed=3), timeline=True)
        assert (whole.ids, whole.text, whole.seed) == (completion.ids, completion.text, 3)
        assert whole.timeline is not None


def test_questions(served: Served) -> None:
    front, _ = served()
    with Client(front.ipc) as client:
        assert client.hello()["model"] == "tiny"
        assert client.ping() > 0
        assert client.info()["counters"]["tokens"] == 1
        assert client.detokenize(client.tokenize("déjà vu")) == "déjà vu"
        with pytest.raises(ServerError) as caught:
            client.detokenize([10**6])
        assert caught.value.code == "bad_request"


def test_many_requests_over_one_connection(served: Served) -> None:
    front, _ = served(credits=3)
    with Client(front.endpoint) as client:
        streams = [client.generate([10 + n], max_tokens=n + 1) for n in range(5)]
        ids = [client.submit([n], max_tokens=5) for n in range(1, 9)]
        results = {item.id: item for item in client.results() if isinstance(item, Completion)}
        assert list(results) != []
        assert [results[id].ids for id in ids] == [[n] * 5 for n in range(1, 9)]
        assert [stream.result().ids for stream in reversed(streams)] == [
            [10 + n] * (n + 1) for n in reversed(range(5))
        ]


def test_errors_have_their_code(served: Served) -> None:
    front, _ = served()
    with Client(front.endpoint) as client:
        with pytest.raises(ServerError) as caught:
            client.complete([1] * 60, max_tokens=60)
        assert caught.value.code == "context_length_exceeded"
        assert not caught.value.retryable
        with pytest.raises(ParameterError, match="temperature"):
            client.generate("x", temperature=-1)
        good, bad = client.submit([1], max_tokens=2), client.submit([999], max_tokens=2)
        results = list(client.results(return_errors=True))
        assert {item.id for item in results} == {good, bad}
        assert {type(item) for item in results} == {Completion, ServerError}
        client.submit([999])
        with pytest.raises(ServerError, match="prompt_ids"):
            list(client.results())
        assert client.complete([1], max_tokens=2).ids == [1, 1]


def test_both_clients_wait_for_a_full_server(served: Served) -> None:
    front, _ = served(credits=1, max_open_requests=1)
    with Client(front.endpoint) as client:
        for _ in range(8):
            client.submit([1, 2], max_tokens=5)
        assert [len(item.ids) for item in client.results()] == [5] * 8
        refusals = client.info()["counters"]["errors"]["queue_full"]
        assert refusals > 0

        async def together() -> list[Completion]:
            async with AsyncClient(front.endpoint) as other:
                return await asyncio.gather(
                    *(other.complete([number + 1], max_tokens=5) for number in range(8))
                )

        assert [len(item.ids) for item in asyncio.run(together())] == [5] * 8
        assert client.info()["counters"]["errors"]["queue_full"] > refusals


def test_cancel_and_leaving_a_stream(served: Served) -> None:
    front, worker = served(credits=1)
    worker.silent = True
    with Client(front.endpoint) as client:
        stream = client.generate([1])
        stream.cancel()
        assert stream.result().finish == "abort"
        with client.generate([1]) as left:
            pass
        with pytest.raises(RuntimeError, match="left before its end"):
            next(left)
        worker.silent = False
        assert client.complete([1], max_tokens=2).ids == [1, 1]


def test_nothing_listens() -> None:
    client = Client("tcp://127.0.0.1:1", timeout=0.3)
    with client, pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1"):
        client.complete("x")


def test_a_failed_lane_is_retryable(served: Served) -> None:
    front, worker = served()
    worker.silent = True
    with Client(front.endpoint) as client:
        stream = client.generate([1])
        client.ping()
        front.order(control_wire.Lost("worker-0"))
        with pytest.raises(ServerError) as caught:
            stream.result()
        assert caught.value.code == "lane_failed"
        assert caught.value.retryable


class ReplacedServer(threading.Thread):
    """A server that vanishes without a word in the middle of a request, and comes back."""

    def __init__(self) -> None:
        super().__init__(name="replaced-server")
        self.port = 0
        self.seeds: list[int] = []
        self.bind()

    def bind(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(f"tcp://127.0.0.1:{self.port or '*'}")
        self.port = int(self.socket.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])

    def run(self) -> None:
        for instance, tokens in enumerate((3, 8)):
            while True:
                routing_id, frame = self.socket.recv_multipart()
                message = msgpack.unpackb(frame)
                if message["type"] == "ping":
                    pong = pack("pong", n=message["n"], instance=str(instance), connection=1)
                    self.socket.send_multipart([routing_id, pong])
                if message["type"] == "generate":
                    break
            self.seeds.append(message["seed"])
            server = ScriptedServer(message["id"], length=8)
            alive = pack("alive", instance=str(instance), connection=1)
            for reply in (alive, server.accept(), server.tokens(tokens, 0)):
                self.socket.send_multipart([routing_id, reply])
            if tokens == 8:
                self.socket.send_multipart([routing_id, server.done()])
                assert self.socket.poll(10_000)  # the client's next message: all has arrived
            else:
                while True:  # until the client has shown that it read the first tokens
                    if msgpack.unpackb(self.socket.recv_multipart()[1])["type"] == "ping":
                        break
            self.socket.close()
            self.context.term()  # only now is the port free again
            if tokens != 8:
                self.bind()


def test_a_replaced_server_is_recovered_from() -> None:
    server = ReplacedServer()
    server.start()
    with Client(f"tcp://127.0.0.1:{server.port}") as client:
        stream = client.generate("x")
        chunks = list(stream)
        client._core.outgoing.append(pack("ping", n=0))
        client._send()
        server.join(10)
    assert not server.is_alive()
    assert [id for chunk in chunks for id in chunk.ids] == list(range(8))
    assert "".join(chunk.text for chunk in chunks) == OUTPUT[:8]
    assert len(chunks) == 2
    assert server.seeds[0] == server.seeds[1]


def test_async_client(served: Served) -> None:
    front, worker = served(credits=2)

    async def use() -> None:
        async with AsyncClient(front.endpoint) as client:
            assert (await client.hello())["model"] == "tiny"
            assert await client.ping() > 0
            completions = await asyncio.gather(
                *(client.complete([n], max_tokens=n) for n in range(1, 9))
            )
            assert [item.ids for item in completions] == [[n] * n for n in range(1, 9)]
            stream = await client.generate([1, 2], max_tokens=6)
            chunks = [chunk async for chunk in stream]
            assert [id for chunk in chunks for id in chunk.ids] == expected([1, 2], 6)
            assert stream.completion is not None
            with pytest.raises(ServerError, match="prompt_ids"):
                await client.complete([999])
            assert await client.detokenize(await client.tokenize("abc")) == "abc"
            assert (await client.info())["topology"] == "unified"
            worker.silent = True
            task = asyncio.create_task(client.complete([1]))
            await client.ping()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            cancelled = await client.generate([1])
            await cancelled.cancel()
            assert (await cancelled.result()).finish == "abort"

    asyncio.run(use())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_async_request_that_is_left_ends_at_the_server(served: Served) -> None:
    front, worker = served(credits=1)
    worker.silent = True

    async def opened(number: int) -> None:
        await asyncio.to_thread(wait_for, lambda: len(worker.open) == number)

    async def use() -> None:
        async with AsyncClient(front.endpoint) as client:
            async with await client.generate([1]) as stream:
                await opened(1)
            await opened(0)
            with pytest.raises(RuntimeError, match="left before its end"):
                await stream.result()
            other = await client.generate([2])
            await opened(1)
            await other.aclose()
            await opened(0)
            task = asyncio.create_task((await client.generate([3])).result())
            await opened(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await opened(0)
            worker.silent = False
            assert (await client.complete([4], max_tokens=3)).ids == [4, 4, 4]

    asyncio.run(use())


def test_async_frames_leave_in_order_and_none_is_lost() -> None:
    """Far more than the queues hold, from tasks of which some are cancelled, to a late reader."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    server = context.socket(zmq.ROUTER)
    server.setsockopt(zmq.LINGER, 0)
    server.setsockopt(zmq.RCVHWM, 1)
    server.bind("tcp://127.0.0.1:*")
    endpoint = server.getsockopt_string(zmq.LAST_ENDPOINT)
    count, prompt = 3000, "x" * 5000
    received: list[str] = []

    def read() -> None:
        while len(received) < count:
            assert server.poll(10_000)
            message = msgpack.unpackb(server.recv_multipart()[1])
            if message["type"] == "generate":
                received.append(message["id"])

    async def use() -> None:
        async with AsyncClient(endpoint, connect_timeout=30) as client:
            tasks = [
                asyncio.create_task(client.complete(prompt, id=f"{number}"))
                for number in range(count)
            ]
            await asyncio.sleep(0)
            assert client._core.outgoing  # the queue is full
            for task in tasks[1000::2]:
                task.cancel()
            await asyncio.to_thread(read)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(use())
    server.close()
    context.term()
    assert received == [str(number) for number in range(count)]


def test_async_nothing_listens() -> None:
    async def use() -> None:
        async with AsyncClient("tcp://127.0.0.1:1", timeout=0.3) as client:
            with pytest.raises(ServerUnreachable):
                await client.complete("x")
            with pytest.raises(ServerUnreachable):
                await client.ping()

    asyncio.run(use())
