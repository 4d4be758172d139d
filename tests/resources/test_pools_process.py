"""Weights and KV that several processes map: one copy of each, and nothing left behind."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import zmq
from pools_harness import WAIT_SECONDS, PoolsHarness, PoolsWorker, pools_config
from tiny_model import TinyPair

from pdv_mp.config import ConfigError, EngineConfig
from pdv_mp.resources.attachment import _map
from pdv_mp.resources.pools_process import SharedPools
from pdv_mp.resources.resources import build_resources
from pdv_mp.wire.control import Failed, Progress, Restarting, Stop
from pdv_mp.wire.frames import WireError
from pdv_mp.wire.pools import (
    POOLS_SOCKET,
    Attach,
    Attached,
    PoolsMessage,
    Welcome,
    decode_pools,
    encode_pools,
)

PROMPT = [5, 9, 2, 200, 31]


class PoolsSocket:
    """The socket of the pools process, answered by the test."""

    def __init__(self, run_dir: Path) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.bind(f"ipc://{run_dir / POOLS_SOCKET}")
        self._identity = b""

    def __enter__(self) -> PoolsSocket:
        return self

    def __exit__(self, *error: object) -> None:
        self._router.close(0)
        self._context.term()

    def receive(self) -> Any:
        assert self._router.poll(int(WAIT_SECONDS * 1000)), "the worker says nothing"
        self._identity, frame = self._router.recv_multipart()
        return decode_pools(frame)

    def answer(self, message: PoolsMessage) -> None:
        self._router.send_multipart([self._identity, encode_pools(message)])


def tiny_config(topology: str, pair: TinyPair, **options: Any) -> EngineConfig:
    settings = {"kv_cache_memory": 1 << 21, "max_num_seqs": 4, **options}
    return pools_config(topology, pair.verifier, pair.draft, **settings)


def attach(harness: PoolsHarness, *names: str) -> list[PoolsWorker]:
    workers = [harness.start_worker(name) for name in names]
    for worker in workers:
        assert worker.attached() == {"attached": True, "heard": []}
    return workers


def sums(config: EngineConfig, role: str, tokens: list[int]) -> list[float]:
    """What a process with weights of its own computes."""
    from pools_child import batch_of

    unified = dataclasses.replace(config, topology="unified", table=None)
    resources = build_resources(unified)
    _ = resources.pools
    runner = resources.runners[role]
    return runner.forward(batch_of(0, tokens, runner.device)).double().sum(1).tolist()


def test_each_process_of_a_row_maps_what_its_stages_need(tiny_pair: TinyPair) -> None:
    config = tiny_config("pdv", tiny_pair)
    with PoolsHarness(config) as harness:
        # The order of starting does not matter.
        draft = harness.start_worker("draft-0")
        ready = harness.start_pools()
        assert ready is not None
        assert ready.facts["fingerprint"] == config.fingerprint
        prefill, verify = attach(harness, "prefill-0", "verify-0")
        assert draft.attached()["attached"]
        both = ["draft", "target"]
        for worker, runners, caches in (
            (prefill, both, both),
            (draft, ["draft"], ["draft"]),
            (verify, ["target"], both),
        ):
            facts = worker.ask("facts")
            assert (facts["runners"], facts["caches"]) == (runners, caches)
            assert facts["blocks"] == ready.facts["kv_blocks"]
        assert prefill.ask("forward", "target", 1, PROMPT) == sums(config, "target", PROMPT)
        assert draft.ask("forward", "draft", 2, PROMPT) == sums(config, "draft", PROMPT)
        assert [worker.leave() for worker in (prefill, draft, verify)] == [0, 0, 0]
        assert harness.stop_pools() == 0


@pytest.mark.parametrize("layout", ["contiguous", "paged"])
def test_what_one_process_writes_another_one_reads(layout: str, tiny_pair: TinyPair) -> None:
    config = tiny_config("pdv", tiny_pair, kv_layout=layout)
    with PoolsHarness(config) as harness:
        harness.start_pools()
        prefill, verify, draft = attach(harness, "prefill-0", "verify-0", "draft-0")
        assert verify.ask("acquire", 1) == 0
        slot = verify.ask("acquire", len(PROMPT))
        assert slot == 1
        if layout == "paged":
            dummy = verify.ask("facts")["blocks"]
            tables = [worker.ask("table", "draft") for worker in (prefill, draft)]
            assert tables[0] == tables[1] == verify.ask("table", "draft")
            assert tables[0][slot][0] != dummy
            assert tables[0][slot + 1] == [dummy] * len(tables[0][0])
        prefill.ask("forward", "target", slot, PROMPT)
        prefill.ask("forward", "draft", slot, PROMPT)
        written = {role: prefill.ask("read", role, slot, 5) for role in ("target", "draft")}
        assert written["target"] != 0.0
        assert verify.ask("read", "target", slot, 5) == written["target"]
        assert draft.ask("read", "draft", slot, 5) == written["draft"]
        assert verify.ask("read", "draft", slot, 5) == written["draft"]


@pytest.mark.parametrize("layout", ["contiguous", "paged"])
def test_a_new_scheduler_forgets_what_the_last_one_had(layout: str, tiny_pair: TinyPair) -> None:
    with PoolsHarness(tiny_config("pdv", tiny_pair, kv_layout=layout)) as harness:
        harness.start_pools()
        prefill, verify = attach(harness, "prefill-0", "verify-0")
        assert [verify.ask("acquire", 40) for _ in range(2)] == [0, 1]
        prefill.ask("forward", "target", 1, PROMPT)
        verify.process.kill()
        verify.process.wait(WAIT_SECONDS)
        (verify,) = attach(harness, "verify-0")
        if layout == "paged":
            held = prefill.ask("table", "target")[1]
            assert verify.ask("acquire", 1) == 0
            dummy = verify.ask("facts")["blocks"]
            assert set(held) > {dummy}
            assert set(prefill.ask("table", "target")[1]) == {dummy}
        else:
            assert prefill.ask("read", "target", 1, 5) != 0.0
            assert verify.ask("acquire", 1) == 0
            assert prefill.ask("read", "target", 1, 5) == 0.0


def test_replicas_share_weights_and_have_kv_of_their_own(tiny_pair: TinyPair) -> None:
    config = tiny_config("baseline", tiny_pair)
    with PoolsHarness(config) as harness:
        harness.start_pools()
        first, last = attach(harness, "worker-0", "worker-3")
        unified = build_resources(dataclasses.replace(config, topology="unified", table=None))
        assert first.ask("facts")["blocks"] == unified.num_blocks // 4
        assert first.ask("acquire", 9) == last.ask("acquire", 9) == 0
        first.ask("forward", "target", 0, PROMPT)
        last.ask("forward", "target", 0, PROMPT[::-1])
        assert first.ask("read", "target", 0, 5) != last.ask("read", "target", 0, 5)
        used = [set(worker.ask("memory")["buffers"]) for worker in (first, last)]
        assert used[0] & used[1] == {"pdv_mp-panels-target", "pdv_mp-panels-draft"}


def test_a_stray_write_into_weights_kills_only_the_process_that_does_it(
    tiny_pair: TinyPair,
) -> None:
    with PoolsHarness(tiny_config("pdv", tiny_pair)) as harness:
        harness.start_pools()
        prefill, verify = attach(harness, "prefill-0", "verify-0")
        expected = verify.ask("forward", "target", 0, PROMPT)
        prefill.tell("spoil", "target")
        assert prefill.process.wait(WAIT_SECONDS) == -signal.SIGSEGV
        assert verify.ask("forward", "target", 0, PROMPT) == expected


def test_mappings_outlive_the_pools_process(tiny_pair: TinyPair) -> None:
    with PoolsHarness(tiny_config("pd", tiny_pair)) as harness:
        harness.start_pools()
        prefill, decode = attach(harness, "prefill-0", "decode-0")
        pools = harness.processes["pools"]
        pools.kill()
        pools.wait(WAIT_SECONDS)
        expected = prefill.ask("forward", "target", 2, PROMPT)
        assert decode.ask("read", "target", 2, 5) == prefill.ask("read", "target", 2, 5) != 0.0
        assert decode.ask("forward", "target", 3, PROMPT) == expected
        # What is started again finds the memory of the new process, and not the old one's.
        harness.start_pools()
        (fresh,) = attach(harness, "prefill-0")
        fresh.ask("forward", "target", 2, PROMPT[::-1])
        assert decode.ask("read", "target", 2, 5) != fresh.ask("read", "target", 2, 5)


def test_a_worker_obeys_while_it_waits_for_the_pools(tiny_pair: TinyPair) -> None:
    with PoolsHarness(tiny_config("pdv", tiny_pair)) as harness:
        worker = harness.start_worker("verify-0")
        assert isinstance(harness.await_message("verify-0", Progress), Progress)
        harness.send("verify-0", Restarting("draft-0", 1, 9))
        harness.send("verify-0", Stop())
        assert worker.attached() == {"attached": False, "heard": ["Restarting"]}
        assert worker.leave() == 0


def test_a_worker_with_another_configuration_is_refused(tiny_pair: TinyPair) -> None:
    with PoolsHarness(tiny_config("pdv", tiny_pair)) as harness:
        harness.start_pools()
        harness.write_config(tiny_config("pdv", tiny_pair, block_size=8))
        worker = harness.start_worker("draft-0")
        refused = worker.attached()["refused"]
        assert refused == "draft-0 has another configuration than the pools"
        assert worker.leave() == 0


def test_the_offer_of_a_process_that_has_died_is_not_the_last(tiny_pair: TinyPair) -> None:
    """The pools process dies between its offer and the mapping; its successor is waited for."""
    config = tiny_config("pdv", tiny_pair)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait(WAIT_SECONDS)
    with PoolsHarness(config) as harness, PoolsSocket(harness.run_dir) as socket:
        owner = SharedPools(config, lambda text: None)
        worker = harness.start_worker("draft-0")
        assert socket.receive() == Attach("draft-0", config.fingerprint)
        socket.answer(dataclasses.replace(owner.offer("draft-0"), pid=dead.pid))
        assert socket.receive() == Attach("draft-0", config.fingerprint)
        socket.answer(owner.offer("draft-0"))
        attached = socket.receive()
        assert attached == Attached("draft-0", ("kv-draft-0", "panels-draft"))
        owner.check_answer("draft-0", attached.buffers)
        socket.answer(Welcome())
        assert worker.attached()["attached"]
        assert worker.leave() == 0
        owner.close()


def test_a_living_process_whose_memory_cannot_be_mapped_is_an_error(tiny_pair: TinyPair) -> None:
    config = tiny_config("pdv", tiny_pair)
    with PoolsHarness(config) as harness, PoolsSocket(harness.run_dir) as socket:
        owner = SharedPools(config, lambda text: None)
        worker = harness.start_worker("draft-0")
        for _ in range(2):
            assert socket.receive() == Attach("draft-0", config.fingerprint)
            socket.answer(dataclasses.replace(owner.offer("draft-0"), magic=0))
        assert "this system does not let processes share memory" in worker.attached()["refused"]
        assert worker.leave() == 0
        owner.close()


def test_modules_of_transformers_are_refused(tiny_pair: TinyPair) -> None:
    with PoolsHarness(tiny_config("pdv", tiny_pair, model_impl="transformers")) as harness:
        harness.start_pools(wait=False)
        failed = harness.await_message("pools", Failed)
        assert isinstance(failed, Failed)
        assert failed.exit_code == 2
        assert failed.message.startswith("--topology pdv runs several processes, which cannot")
        assert harness.processes["pools"].wait(WAIT_SECONDS) == 2


@pytest.fixture
def pools(tiny_pair: TinyPair) -> Any:
    """The owner of the memory, in this process."""
    owner = SharedPools(tiny_config("pdv", tiny_pair), lambda text: None)
    yield owner
    owner.close()


def map_all(pools: SharedPools, offer: Any) -> Any:
    names = [part.name for part in offer.memfds]
    return _map(offer, names, torch.device("cpu"))


def test_the_magic_number_goes_there_and_back(pools: SharedPools) -> None:
    offer = pools.offer("draft-0")
    with pytest.raises(ConfigError, match="what draft-0 writes into its mapping of handshake"):
        pools.check_answer("draft-0", ())
    attachment = map_all(pools, offer)
    pools.check_answer("draft-0", ())
    assert attachment.tensor("panels-target").numel() == offer.memfds[0].nbytes
    pools.offer("draft-0")
    with pytest.raises(ConfigError, match="does not arrive"):
        pools.check_answer("draft-0", ())  # what was written answers the offer before
    stranger = dataclasses.replace(offer, magic=offer.magic ^ 1)
    with pytest.raises(ConfigError, match="is not to be seen here"):
        map_all(pools, stranger)


def test_memory_that_is_not_the_offered_one_is_refused(pools: SharedPools) -> None:
    offer = pools.offer("verify-0")
    first, *others = offer.memfds
    for changes, text in (
        ({"inode": first.inode + 1}, "inode"),
        ({"nbytes": first.nbytes + 1}, "bytes"),
        ({"fd": 10_000}, "No such file"),
    ):
        changed = dataclasses.replace(
            offer, memfds=(dataclasses.replace(first, **changes), *others)
        )
        with pytest.raises(ConfigError, match=f"cannot be mapped .*{text}"):
            map_all(pools, changed)
    with pytest.raises(WireError, match="have no kv-target-7"):
        _map(offer, ["kv-target-7"], torch.device("cpu"))


def test_every_buffer_can_be_written_but_the_weights(pools: SharedPools) -> None:
    attachment = map_all(pools, pools.offer("verify-0"))
    for name, part in attachment.memfds.items():
        assert part.writable == (not name.startswith("panels-"))
    assert not attachment.tensor("kv-target-0").any(), "KV is empty"
