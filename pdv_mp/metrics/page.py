"""Prints ``docs/metrics.md``: ``python -m pdv_mp.metrics.page > docs/metrics.md``."""

from __future__ import annotations

from collections.abc import Iterable

from pdv_mp.metrics.catalogue import OURS, VLLM, Metric

_HEAD = """# Metrics

Made by `python -m pdv_mp.metrics.page > docs/metrics.md`; a test compares the two.

`pdv-launch --metrics-port 9550` starts a process that answers Prometheus at
`http://127.0.0.1:9550/metrics`; with `--http-port` the gateway answers at its `/metrics` too. Both
ask the front for the `info` of [the protocol](protocol.md) and write it in Prometheus' text format,
the former at most once a second, however many scrape. It asks for no key, so it listens on this
machine only, unless `--metrics-host` and `--insecure` say otherwise. While the front does not
answer, the status is 503. A scrape configuration:

```yaml
scrape_configs:
  - job_name: pdv_mp
    scrape_interval: 5s
    static_configs:
      - targets: ["127.0.0.1:9550"]
```

[grafana.json](grafana.json) is a dashboard of these metrics, made by `python -m
pdv_mp.metrics.dashboard > docs/grafana.json`; import it and choose the data source. `pdv-top` shows
the same numbers in a terminal ([operations](operations.md#watching)).

- Names that begin with `vllm:` have vLLM's meaning, so that `vllm bench serve` prints acceptance,
  and dashboards of vLLM show what they show there. They have the labels `model_name` and `engine`,
  which is always `0`: the front counts for all replicas together.
- Mean acceptance length = 1 + accepted tokens / drafts; acceptance rate = accepted tokens / draft
  tokens. Both are counted when a verdict reaches the front, before any cut by a stop or
  `max_tokens`, also for requests that have ended meanwhile.
- Counters of requests, tokens, cycles and latencies are the front's, and the front outlives every
  worker. The others (stages, handoffs, draft lengths, pre-emptions) are the schedulers': when one
  dies, what it had counted when it was last asked stays in the sum. So no counter shrinks, but what
  it counted after that is lost. CPU seconds are of the process that is there, and begin anew with
  it.
- An inter-token latency is the time between two deliveries, however many tokens they have, and of a
  request that is not streamed between the cycles that yielded them, since these tokens may come to
  the front some 50 ms later, several cycles' together; the time per output token divides by the
  number of tokens.
- Goodput counts the requests that ended by a stop or their length and kept both
  `--goodput-ttft-ms` and `--goodput-tpot-ms`.
- Histograms of latencies have six buckets a decade from 100 µs to 1000 s; those of handoffs have
  powers of two of nanoseconds from 8.2 µs to 1.07 s.
- GPU metrics come from NVIDIA's driver where models are on a GPU; what it does not tell is missing.
"""


def page() -> str:
    """The whole page."""
    tables = (("vLLM's names", VLLM), ("Ours", OURS))
    return "\n".join([_HEAD, *(_table(title, metrics) for title, metrics in tables)])


def _table(title: str, metrics: Iterable[Metric]) -> str:
    rows = [
        f"| `{metric.shown_name}` | {metric.kind} | "
        f"{', '.join(f'`{label}`' for label in metric.labels)} | {metric.help} |"
        for metric in metrics
    ]
    head = [f"## {title}", "", "| name | kind | labels | meaning |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows, ""])


if __name__ == "__main__":
    print(page(), end="")
