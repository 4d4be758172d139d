"""``LLM`` with real processes: in scripts, threads and notebooks, and with nothing left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_model import TinyPair

from pdv_mp import LLM, SamplingParams
from pdv_mp.client.client import Client, ServerError
from pdv_mp.client.llm import LaunchError
from pdv_mp.sampling_params import ParameterError

OPTIONS: dict[str, Any] = {"device": "cpu", "threads": 1, "kv_cache_memory": "16M"}
FIXED = SamplingParams(max_tokens=6, ignore_eos=True)


def make(pair: TinyPair, **options: Any) -> LLM:
    return LLM(pair.verifier, pair.draft, **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def llm(tiny_pair: TinyPair, run_place: object) -> Iterator[LLM]:
    with make(tiny_pair, check_invariants=True, max_open_requests=4) as served:
        yield served


def alive(pids: dict[str, int]) -> list[str]:
    processes = {name: psutil.Process(pid) for name, pid in pids.items() if psutil.pid_exists(pid)}
    _, left = psutil.wait_procs(list(processes.values()), timeout=5)
    return [name for name, process in processes.items() if process in left]


def test_completions_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = [f"def f{number}(" for number in range(9)]  # more than may be open at once
    params = [
        SamplingParams(max_tokens=1 + number % 3, ignore_eos=True) for number in range(len(prompts))
    ]
    together = llm.generate(prompts, params)
    assert [len(completion.ids) for completion in together] == [p.max_tokens for p in params]
    alone = [llm.generate(prompt, p)[0].ids for prompt, p in zip(prompts, params, strict=True)]
    assert [completion.ids for completion in together] == alone


def test_log_probabilities_come_with_the_completions(llm: LLM) -> None:
    params = SamplingParams(max_tokens=6, ignore_eos=True, logprobs=2, prompt_logprobs=0)
    (completion,) = llm.generate([[5, 6, 7]], params)
    assert completion.logprobs is not None
    assert completion.prompt_logprobs is not None
    assert [entry.id for entry in completion.logprobs] == completion.ids
    assert all(entry.top[0] == (entry.id, entry.logprob) for entry in completion.logprobs)
    assert [(entry.id, entry.top) for entry in completion.prompt_logprobs] == [(6, ()), (7, ())]


def test_ids_are_prompts_too(llm: LLM) -> None:
    (completion,) = llm.generate([[5, 6, 7]], FIXED)
    assert completion.usage["prompt_tokens"] == 3
    assert len(completion.ids) == 6
    assert llm.generate([]) == []
    with pytest.raises(TypeError, match="give a list of such lists"):
        llm.generate([5, 6, 7], FIXED)
    with pytest.raises(ValueError, match="2 sampling_params for 1 prompts"):
        llm.generate(["x"], [FIXED, FIXED])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1], [1.5, 2]], r"prompts\[1\] has something that is no token id: 'float'"),
        (["x", None], r"prompts\[1\] is None; give a text or a list of token ids"),
        ([b"x"], r"prompts\[0\] is b'x'; give a text"),
    ],
)
def test_what_is_no_prompt_is_named(llm: LLM, prompts: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        llm.generate(prompts, FIXED)


def test_an_option_that_is_json_may_be_a_map(tiny_pair: TinyPair) -> None:
    config = {"method": "ngram", "num_speculative_tokens": 2}
    with LLM(tiny_pair.verifier, speculative_config=config, **OPTIONS) as served:
        with Client(served.ipc) as client:
            assert client.info()["speculation"]["method"] == "ngram"
        (completion,) = served.generate([[5, 6, 7, 5, 6]], FIXED)
        assert len(completion.ids) == 6


def test_text_that_is_not_unicode_is_refused(llm: LLM) -> None:
    with pytest.raises(ParameterError, match="not valid Unicode"):
        llm.generate(["x", "a\udce9"], FIXED)
    assert len(llm.generate(["x"] * 8, FIXED)) == 8


def test_refused_prompt_raises_and_the_next_call_is_served(llm: LLM) -> None:
    with pytest.raises(ServerError, match="context_length_exceeded"):
        llm.generate(["x", [1] * 510, "y"], FIXED)
    assert len(llm.generate(["x"] * 8, FIXED)) == 8


def test_threads_share_a_server(llm: LLM) -> None:
    results: dict[int, list[list[int]]] = {}

    def work(number: int) -> None:
        results[number] = [c.ids for c in llm.generate(["one", "two", "three"], FIXED)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert results[0] == results[1] == results[2]


def test_made_in_a_thread_that_ends_and_closed_with_its_last_reference(
    tiny_pair: TinyPair,
) -> None:
    made: list[LLM] = []
    thread = threading.Thread(target=lambda: made.append(make(tiny_pair)))
    thread.start()
    thread.join()
    assert len(made[0].generate("x", FIXED)) == 1
    pids = made[0].pids
    made.clear()
    gc.collect()
    assert alive(pids) == []


def test_closed_twice_and_used_after(tiny_pair: TinyPair) -> None:
    served = make(tiny_pair)
    pids = served.pids
    served.close()
    served.close()
    assert alive(pids) == []
    with pytest.raises(LaunchError, match="closed"):
        served.generate("x")


def test_dead_worker_is_a_launch_error_that_names_it(tiny_pair: TinyPair) -> None:
    with make(tiny_pair, max_restarts=0) as served:
        os.kill(served.pids["worker-0"], signal.SIGKILL)
        with pytest.raises(LaunchError, match="worker-0 was killed by SIGKILL"):
            served.generate("x", SamplingParams(max_tokens=400, ignore_eos=True))


def test_process_ids_are_those_after_a_restart(tiny_pair: TinyPair) -> None:
    with LLM(tiny_pair.verifier, tiny_pair.draft, **OPTIONS) as served:
        first = served.pids
        os.kill(first["worker-0"], signal.SIGKILL)
        (completion,) = served.generate("def add(", SamplingParams(max_tokens=3, ignore_eos=True))
        assert len(completion.ids) == 3
        deadline = time.monotonic() + 30
        while (second := served.pids) == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert psutil.Process(second.pop("worker-0")).ppid() == first["launcher"]
        assert second.items() < first.items()
    assert alive(served.pids) == []


def test_close_during_generate_is_a_launch_error(tiny_pair: TinyPair) -> None:
    errors: list[Exception] = []

    def work() -> None:
        try:
            served.generate(["x"] * 12, SamplingParams(max_tokens=500, ignore_eos=True))
        except LaunchError as error:
            errors.append(error)

    with make(tiny_pair, max_open_requests=4, num_speculative_tokens=0) as served:
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        with Client(served.ipc) as client:
            while client.info()["counters"]["open_requests"] < 4:
                time.sleep(0.01)
        served.close()
        for thread in threads:
            thread.join(30)
    assert [str(error) for error in errors] == ["the server was stopped"] * 2


def test_dead_front_is_noticed_without_waiting_for_silence(
    tiny_pair: TinyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A client of such patience finds out in time only by looking at the process.
    monkeypatch.setattr("pdv_mp.client.llm.SILENCE_SECONDS", 3600.0)
    with make(tiny_pair) as served:
        os.kill(served.pids["front"], signal.SIGKILL)
        with pytest.raises(LaunchError, match="front was killed by SIGKILL"):
            served.generate("x", SamplingParams(max_tokens=400, ignore_eos=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "/nowhere/model"}, "/nowhere/model: no such folder"),
        ({"topology": "auto"}, "topology 'auto' is not one of unified"),
        ({"max_num_seq": 1}, "No such option '--max-num-seq'"),
        ({"max_num_seqs": 0}, "0 is not in the range"),
    ],
)
def test_failure_to_start_has_the_launchers_message(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LaunchError) as caught:
        LLM(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


SCRIPT = """
import sys
from pdv_mp import LLM, SamplingParams

llm = LLM(sys.argv[1], sys.argv[2], device="cpu", threads=1, kv_cache_memory="16M")
print(len(llm.generate("x", SamplingParams(max_tokens=3, ignore_eos=True))[0].ids))
print(*llm.pids.values(), flush=True)
if sys.argv[3] == "wait":
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["falls-off", "killed"])
def test_script_without_a_main_guard_leaves_nothing(
    tiny_pair: TinyPair, tmp_path: Path, end: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    if sys.version_info >= (3, 11):
        # Named as a module that torch imports: it is the script's own business.
        (tmp_path / "tarfile.py").write_text("raise ImportError('a file beside the script')")
    process = subprocess.Popen(
        [
            *(sys.executable, str(script), str(tiny_pair.verifier), str(tiny_pair.draft)),
            "wait" if end == "killed" else "go",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "3\n"
    pids = {text: int(text) for text in process.stdout.readline().split()}
    assert len(pids) == 3
    if end == "killed":
        process.kill()
    else:
        assert process.wait(60) == 0
    process.wait()
    process.stdout.close()
    process.stdin.close()
    assert alive(pids) == []
