"""``pdv-client`` as a process, against a front whose worker is played by the test."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from front.front_harness import Entry, FrontUnderTest, small_tokenizer

from pdv_mp.wire import engine as wire
from pdv_mp.wire.engine import Finish

TOKENIZER = small_tokenizer()
OUTPUT = TOKENIZER.encode("café 🙂 STOP and END").ids


@pytest.fixture
def front(tmp_path: Path) -> Iterator[FrontUnderTest]:
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    front = FrontUnderTest(tmp_path).start()
    yield front
    front.close()


class Command:
    """A ``pdv-client`` that runs."""

    def __init__(self, *arguments: str, stdin: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launcher.client", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self.stdin = stdin

    def result(self) -> tuple[int, str, str]:
        output, errors = self.process.communicate(self.stdin, timeout=30)
        return self.process.returncode, output, errors

    def wait_until_interrupts_are_caught(self) -> None:
        """Until then Python itself has not begun, and an interrupt kills the process."""
        status = Path(f"/proc/{self.process.pid}/status")
        interrupt = 1 << (signal.SIGINT - 1)
        deadline = time.monotonic() + 30
        while not int(status.read_text().split("SigCgt:")[1].split()[0], 16) & interrupt:
            assert time.monotonic() < deadline, "Python did not begin"
            time.sleep(0.005)


def answer(front: FrontUnderTest) -> Any:
    """Serve the next request with OUTPUT; returns its Open."""
    opened = front.engine.receive(wire.Open)
    front.engine.emit(Entry(opened.request, OUTPUT[:4], drafted=4, accepted=3))
    front.engine.emit(Entry(opened.request, OUTPUT[4:], finish=Finish.LENGTH))
    return opened


def test_the_completion_is_printed(front: FrontUnderTest) -> None:
    command = Command(
        "the quick",
        "--endpoint",
        front.endpoint,
        *("--temperature", "0.5", "--top-k", "3", "--top-p", "0.9", "--min-p", "0.1"),
        *("--seed", "7", "--max-tokens", "20", "--no-speculate", "--ignore-eos", "--verbose"),
    )
    opened = answer(front)
    code, output, errors = command.result()
    assert (code, output) == (0, "café 🙂 STOP and END\n")
    assert opened.prompt_ids.tolist() == TOKENIZER.encode("the quick").ids
    assert opened.sampling == (0.5, 3, 0.9, 0.1, 7)
    assert opened.max_tokens == 20
    assert opened.stop_ids == ()
    assert not opened.speculate
    assert f"{len(OUTPUT)} tokens" in errors
    assert "accepted 75%" in errors


def test_the_prompt_may_come_from_standard_input(front: FrontUnderTest) -> None:
    command = Command("--endpoint", front.ipc, "--stop", "STOP", "--timeline", stdin="the lazy\n")
    command.process.stdin.write("")  # type: ignore[union-attr]
    outcome: list[tuple[int, str, str]] = []
    reader = threading.Thread(target=lambda: outcome.append(command.result()))
    reader.start()
    opened = front.engine.receive(wire.Open)
    front.engine.emit(Entry(opened.request, OUTPUT, timeline=opened.timeline))
    reader.join(30)
    code, output, errors = outcome[0]
    assert (code, output) == (0, "café 🙂 \n")
    assert TOKENIZER.decode(opened.prompt_ids.tolist()) == "the lazy\n"
    assert "verify.compute" in errors
    assert "orchestration" in errors


def test_json_prints_the_messages(front: FrontUnderTest) -> None:
    command = Command("x", "--endpoint", front.endpoint, "--json")
    answer(front)
    code, output, errors = command.result()
    messages = [json.loads(line) for line in output.splitlines()]
    kinds = [message["type"] for message in messages if message["type"] != "alive"]
    assert kinds == ["welcome", "accepted", "tokens", "tokens", "done"]
    assert [id for item in messages for id in item.get("ids", [])] == OUTPUT
    assert (code, errors) == (0, "")


def test_log_probabilities_are_printed_after_the_text(front: FrontUnderTest) -> None:
    command = Command("x", "--endpoint", front.endpoint, "--logprobs", "2")
    opened = front.engine.receive(wire.Open)
    assert (opened.logprobs, opened.prompt_logprobs) == (2, -1)
    ids = TOKENIZER.encode("café").ids
    rows = [(-0.5, [(id, -0.5), (0, -12.25)]) for id in ids]
    front.engine.emit(Entry(opened.request, ids, finish=Finish.LENGTH, logprobs=rows))
    code, output, errors = command.result()
    assert code == 0
    text, *lines = output.splitlines()
    assert text == "café"
    shown = [json.dumps(TOKENIZER.decode([id]), ensure_ascii=False) for id in ids]
    assert [line.split() for line in lines] == [
        ["-0.5000", token, "-0.5000", token, "-12.2500", '"<0>"'] for token in shown
    ]
    assert errors == ""


def test_interrupt_cancels_the_request(front: FrontUnderTest) -> None:
    command = Command("x", "--endpoint", front.endpoint)
    opened = front.engine.receive(wire.Open)
    front.engine.emit(Entry(opened.request, OUTPUT[:4]))
    assert command.process.stdout is not None
    command.process.stdout.read(1)
    command.process.send_signal(signal.SIGINT)
    assert front.engine.receive(wire.Close).requests.tolist() == [opened.request]
    code, _, errors = command.result()
    assert code == 130
    assert errors.splitlines() == ["pdv-client: interrupted"]


@pytest.mark.parametrize("pauses", [[0.05], [0.1], [0.2], [0.6], [0.6, 0.1]])
def test_interrupt_at_any_time_is_one_line(pauses: list[float]) -> None:
    command = Command("x", "--endpoint", "tcp://127.0.0.1:1")
    command.wait_until_interrupts_are_caught()
    for pause in pauses:
        time.sleep(pause)
        command.process.send_signal(signal.SIGINT)
    code, output, errors = command.result()
    if "launcher" not in errors and "Traceback" in errors:
        pytest.skip("it came before Python had read any of our code")
    assert (code, output) == (130, "")
    assert errors.splitlines() == ["pdv-client: interrupted"]


def test_interrupt_while_nothing_answers_ends_soon() -> None:
    command = Command("x", "--endpoint", "tcp://127.0.0.1:1", "--timeout", "3600")
    time.sleep(1.0)
    command.process.send_signal(signal.SIGINT)
    assert command.result()[0] == 130


def test_standard_input_that_is_not_text_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launcher.client"],
        input=b"caf\xe9",
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == (b"pdv-client: standard input is not UTF-8 text: byte 3 cannot be read\n")


def test_a_closed_pipe_ends_the_command(front: FrontUnderTest) -> None:
    command = Command("x", "--endpoint", front.endpoint)
    opened = front.engine.receive(wire.Open)
    assert command.process.stdout is not None
    command.process.stdout.close()
    front.engine.emit(Entry(opened.request, OUTPUT[:4]))
    assert front.engine.receive(wire.Close).requests.tolist() == [opened.request]
    assert command.process.stderr is not None
    assert command.process.stderr.read() == ""
    assert command.process.wait(30) == 1
    command.process.stderr.close()
    assert command.process.stdin is not None
    command.process.stdin.close()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["x", "--endpoint", "tcp://127.0.0.1:1", "--timeout", "1"], 1, "nothing was heard"),
        (["x", "--endpoint", "http://127.0.0.1"], 2, "--endpoint"),
        (["x", "--temperature", "11"], 2, "temperature"),
        (["x", "--top-p", "0"], 2, "top_p"),
        (["x", "--logprobs", "21"], 2, "logprobs"),
        (["x", "--max-tokns", "5"], 2, "No such option '--max-tokns'"),
        (["x", "--endpoint", "tcp://127.0.0.1"], 2, "tcp://HOST:PORT"),
        (["caf\udce9"], 2, "prompt is not valid Unicode"),
        (["x", "--stop", "caf\udce9"], 2, "stop"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], code: int, sentence: str) -> None:
    status, output, errors = Command(*arguments).result()
    assert (status, output) == (code, "")
    assert sentence in errors
    assert len(errors.splitlines()) == 1


def test_a_refused_request_is_one_sentence(front: FrontUnderTest) -> None:
    status, _, errors = Command("the " * 70, "--endpoint", front.endpoint).result()
    assert status == 2
    assert "prompt has" in errors
    assert len(errors.splitlines()) == 1
