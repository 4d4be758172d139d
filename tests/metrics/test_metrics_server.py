"""``--metrics-port``: what a real server counts, and how it is served."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_process import ServerProcess, run_launch

from pdv_mp import Client, SamplingParams
from pdv_mp.metrics import http_server, scraper
from pdv_mp.metrics.catalogue import METRICS
from pdv_mp.metrics.exposition import CONTENT_TYPE

Start = Callable[..., ServerProcess]
Labels = tuple[tuple[str, str], ...]

WAIT_SECONDS = 60.0


def fetch(url: str, method: str = "GET") -> Any:
    return urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=WAIT_SECONDS)


def scrape(server: ServerProcess) -> dict[tuple[str, Labels], float]:
    with fetch(current(server)["metrics"]) as response:
        assert response.headers["Content-Type"] == CONTENT_TYPE
        text = response.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def current(server: ServerProcess) -> dict[str, Any]:
    """What the launcher reports now."""
    report: dict[str, Any] = json.loads((server.run_dir / "ready.json").read_text())
    return report


def value(found: dict[tuple[str, Labels], float], name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    return sum(
        number
        for (sample, has), number in found.items()
        if sample == name and set(labels.items()) <= set(has)
    )


def scrape_until(
    server: ServerProcess, true: Callable[[dict[tuple[str, Labels], float]], bool]
) -> dict[tuple[str, Labels], float]:
    """Scrapes until something is so; scrapes within a second show the same, and one may fail where
    the process is just starting again or the machine is too busy."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            found = scrape(server)
        except (urllib.error.URLError, ConnectionError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
        else:
            if true(found):
                return found
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_server_tells_its_metrics_all_its_life(start_server: Start) -> None:
    server = start_server("--metrics-port", "0")
    check_counts(server)
    check_death(server)
    check_port(server)
    assert server.stop().code == 0


def check_counts(server: ServerProcess) -> None:
    """What is scraped is what clients were told."""
    params = SamplingParams(max_tokens=20, temperature=0.8, ignore_eos=True)
    with Client(server.ipc) as client:
        for number in range(5):
            client.submit([5, 6, number], params)
        done = list(client.results())
        found = scrape_until(
            server, lambda found: value(found, "vllm:generation_tokens_total") == 5 * 20
        )
        shown = {name for name, _ in found}
        counters = client.info()["counters"]
    assert {metric.shown_name for metric in METRICS if metric.kind != "histogram"} - shown == {
        *("pdv_gpu_memory_bytes", "pdv_gpu_memory_used_bytes", "pdv_gpu_utilization_ratio"),
        *("pdv_process_gpu_memory_bytes", "pdv_tokenizer_texts_total"),
    }
    speculation = [item.speculation for item in done]
    drafts, drafted, accepted = (
        sum(item[name] for item in speculation) for name in ("cycles", "drafted", "accepted")
    )
    assert drafted > accepted > 0
    assert value(found, "vllm:spec_decode_num_drafts_total") == drafts
    assert value(found, "vllm:spec_decode_num_draft_tokens_total") == drafted
    assert value(found, "vllm:spec_decode_num_accepted_tokens_total") == accepted
    assert counters["drafted_tokens"] == drafted, "the scheduler counts the same"
    for position in range(4):
        at_position = sum(item["accepted_per_pos"][position] for item in speculation)
        name = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
        assert value(found, name, position=str(position)) == at_position
    assert value(found, "vllm:prompt_tokens_total") == 5 * 3
    assert value(found, "vllm:request_success_total", finished_reason="length") == 5
    assert value(found, "vllm:e2e_request_latency_seconds_count") == 5
    end_to_end = sum(item.timing["e2e_ms"] or 0 for item in done) / 1000
    measured = value(found, "vllm:e2e_request_latency_seconds_sum")
    assert measured == pytest.approx(end_to_end, rel=0.05, abs=0.01)
    first = sum(item.timing["ttft_ms"] or 0 for item in done) / 1000
    assert value(found, "vllm:time_to_first_token_seconds_sum") == pytest.approx(first)
    assert value(found, "vllm:num_requests_running") == 0
    assert value(found, "pdv_handoff_seconds_count", edge="verify>front", phase="wire") > 0
    for process in (*server.pids, "launcher"):
        assert value(found, "pdv_process_up", process=process) == 1
        assert value(found, "pdv_process_cpu_seconds_total", process=process) > 0
    assert "metrics" in server.pids


def check_death(server: ServerProcess) -> None:
    """Counters outlive a scheduler."""
    before = scrape_until(server, bool)
    tokens = value(before, "vllm:generation_tokens_total")
    os.kill(server.pids["worker-0"], signal.SIGKILL)
    with Client(server.ipc) as client:
        client.complete([5, 7], max_tokens=12, ignore_eos=True)
    after = scrape_until(
        server, lambda found: value(found, "vllm:generation_tokens_total") == tokens + 12
    )
    assert value(after, "pdv_process_restarts_total", process="worker-0") == 1
    growing = ("_total", "_count", "_sum", "_bucket")
    for (name, labels), number in before.items():
        if name.endswith(growing) and "cpu_seconds" not in name:
            assert after[name, labels] >= number, f"{name} {labels}"
    for name in ("pdv_stage_batches_total", "pdv_stage_forwards_total"):
        assert value(after, name, stage="verify") > value(before, name, stage="verify") > 0


def check_port(server: ServerProcess) -> None:
    """The port answers what it is asked, and is served again when its process died."""
    url = server.ready["metrics"]
    with fetch(url, "HEAD") as response:
        assert response.status == 200
        assert int(response.headers["Content-Length"]) > 1000
        assert response.read() == b""
    with pytest.raises(urllib.error.HTTPError) as missing:
        fetch(url.removesuffix("metrics") + "etc/passwd")
    missing.value.close()
    assert missing.value.code == 404
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(url, "POST")
    refused.value.close()
    assert refused.value.code == 501
    host, port = url.removeprefix("http://").removesuffix("/metrics").split(":")
    silent = [
        socket.create_connection((host, int(port))) for _ in range(2 * http_server.MAX_CONNECTIONS)
    ]
    for connection in silent:
        connection.close()
    assert value(scrape_until(server, bool), "vllm:num_requests_waiting") == 0
    first = current(server)["pids"]["metrics"]
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + WAIT_SECONDS
    while current(server)["pids"]["metrics"] == first:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    found = scrape_until(server, bool)
    assert value(found, "pdv_process_up", process="metrics") == 1


def test_other_machines_may_read_only_if_they_are_meant_to() -> None:
    done = run_launch("--metrics-port", "0", "--metrics-host", "0.0.0.0", "--port", "0")
    assert done.code == 2
    assert "--metrics-host 0.0.0.0" in done.messages[-1]
    assert "--insecure" in done.messages[-1]


def test_a_port_in_use_is_refused_before_the_start() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_launch("--metrics-port", str(port), "--port", "0")
    assert done.code == 2
    assert f"--metrics-port {port} cannot be used" in done.messages[-1]


class SlowClient:
    """Counts how often it is asked, and how many ask at once."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.asked = self.inside = 0

    def info(self, batches: int) -> dict[str, Any]:
        self.asked += 1
        self.inside += 1
        assert self.inside == 1, "a client is for one thread"
        time.sleep(0.01)
        self.inside -= 1
        return {}


def test_the_front_is_asked_once_however_many_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraper, "Client", SlowClient)
    monkeypatch.setattr(scraper, "SECONDS_VALID", 3600.0)
    source = scraper.Scraper("ipc://nowhere")
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(source.text())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 8
    assert source._client.asked == 1  # type: ignore[attr-defined]
