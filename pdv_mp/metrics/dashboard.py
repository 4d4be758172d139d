"""Prints a Grafana dashboard: ``python -m pdv_mp.metrics.dashboard > docs/grafana.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

SOURCE = {"type": "prometheus", "uid": "${source}"}

_COLUMNS = 3
_WIDTH = 24 // _COLUMNS
_HEIGHT = 8


@dataclass(frozen=True, slots=True)
class Panel:
    """A graph: its title, Grafana's name of its unit, and by legend what it shows."""

    title: str
    unit: str
    shown: tuple[tuple[str, str], ...]
    description: str = ""


def _rate(metric: str, by: str = "") -> str:
    """The growth per second of a counter."""
    grouped = f" by ({by}) " if by else ""
    return f"sum{grouped}(rate({metric}[$__rate_interval]))"


def _quantiles(metric: str, by: str = "", selector: str = "") -> tuple[tuple[str, str], ...]:
    """p50 and p99 of a histogram."""
    names = f"{by}, le" if by else "le"
    legend = f"{{{{{by}}}}} " if by else ""
    return tuple(
        (
            f"{legend}p{percent}",
            f"histogram_quantile({percent / 100:g}, "
            f"sum by ({names}) (rate({metric}_bucket{selector}[$__rate_interval])))",
        )
        for percent in (50, 99)
    )


_ACCEPTED = _rate("vllm:spec_decode_num_accepted_tokens_total")
_DRAFTED = _rate("vllm:spec_decode_num_draft_tokens_total")
_DRAFTS = _rate("vllm:spec_decode_num_drafts_total")

ROWS: dict[str, tuple[Panel, ...]] = {
    "Requests": (
        Panel(
            "Requests",
            "reqps",
            (
                ("{{finished_reason}}", _rate("vllm:request_success_total", "finished_reason")),
                ("goodput", _rate("pdv_goodput_requests_total")),
                ("errors", _rate("pdv_request_errors_total")),
            ),
        ),
        Panel(
            "Tokens",
            "short",
            (
                ("output tokens/s", _rate("vllm:generation_tokens_total")),
                ("prompt tokens/s", _rate("vllm:prompt_tokens_total")),
                ("of them cached", _rate("vllm:prefix_cache_hits_total")),
            ),
        ),
        Panel(
            "Open requests",
            "short",
            (
                ("running", "sum(vllm:num_requests_running)"),
                ("waiting", "sum(vllm:num_requests_waiting)"),
                ("queue {{queue}}", "sum by (queue) (pdv_queue_depth)"),
            ),
        ),
        Panel("Time to first token", "s", _quantiles("vllm:time_to_first_token_seconds")),
        Panel(
            "Time per output token",
            "s",
            (
                *_quantiles("vllm:request_time_per_output_token_seconds"),
                ("between deliveries p99", _quantiles("vllm:inter_token_latency_seconds")[1][1]),
            ),
        ),
        Panel(
            "Where a request's time goes",
            "s",
            tuple(
                (name, f"{_rate(f'{metric}_sum')} / {_rate(f'{metric}_count')}")
                for name, metric in (
                    ("in queue", "vllm:request_queue_time_seconds"),
                    ("prefill", "vllm:request_prefill_time_seconds"),
                    ("decode", "vllm:request_decode_time_seconds"),
                    ("end to end", "vllm:e2e_request_latency_seconds"),
                )
            ),
            "Means of the requests that finished.",
        ),
    ),
    "Speculation": (
        Panel("Acceptance rate", "percentunit", (("accepted", f"{_ACCEPTED} / {_DRAFTED}"),)),
        Panel(
            "Tokens per cycle",
            "short",
            (
                ("mean acceptance length", f"1 + {_ACCEPTED} / {_DRAFTS}"),
                ("drafted", f"{_DRAFTED} / {_DRAFTS}"),
                ("draft length of {{replica}} now", "pdv_draft_length"),
            ),
        ),
        Panel(
            "Acceptance by position",
            "percentunit",
            (
                (
                    "{{position}}",
                    _rate("vllm:spec_decode_num_accepted_tokens_per_pos_total", "position")
                    + f" / scalar({_DRAFTS})",
                ),
            ),
            "Of all cycles with drafts, those that accepted the draft token at this position.",
        ),
    ),
    "Stages and edges": (
        Panel(
            "Stages' time",
            "percentunit",
            (("{{stage}} {{part}}", _rate("pdv_stage_seconds_total", "stage, part")),),
        ),
        Panel(
            "Mean batch",
            "short",
            (
                (
                    "{{stage}}",
                    f"{_rate('pdv_stage_sequences_total', 'stage')} / "
                    f"{_rate('pdv_stage_batches_total', 'stage')}",
                ),
            ),
        ),
        Panel("Messages", "cps", (("{{edge}}", _rate("pdv_edge_messages_total", "edge")),)),
        Panel(
            "Handoffs on the wire",
            "s",
            _quantiles("pdv_handoff_seconds", "edge", '{phase="wire"}'),
            "Handed to the socket until the receiver's poll returned it.",
        ),
        Panel(
            "Handoffs in their inbox",
            "s",
            _quantiles("pdv_handoff_seconds", "edge", '{phase="inbox"}'),
        ),
        Panel(
            "Time of handoffs",
            "percentunit",
            (("{{phase}}", _rate("pdv_handoff_seconds_sum", "phase")),),
            "Seconds of each phase per second, over all edges.",
        ),
    ),
    "Memory and processes": (
        Panel(
            "KV",
            "percentunit",
            (
                ("blocks in use", "sum(vllm:kv_cache_usage_perc)"),
                ("slots of {{replica}}", "pdv_slots_in_use / pdv_slots"),
                ("pre-emptions/s", _rate("vllm:num_preemptions_total")),
            ),
        ),
        Panel(
            "Cores",
            "short",
            (("{{process}}", "rate(pdv_process_cpu_seconds_total[$__rate_interval])"),),
        ),
        Panel(
            "Memory of processes",
            "bytes",
            (
                ("{{process}}", "pdv_process_proportional_memory_bytes"),
                ("{{process}} on the GPU", "pdv_process_gpu_memory_bytes"),
            ),
            "Each shared page divided by the processes that have it.",
        ),
        Panel("GPUs busy", "percentunit", (("{{gpu}} {{name}}", "pdv_gpu_utilization_ratio"),)),
        Panel(
            "GPUs' memory",
            "bytes",
            (
                ("{{gpu}} used", "pdv_gpu_memory_used_bytes"),
                ("{{gpu}} all", "pdv_gpu_memory_bytes"),
            ),
        ),
        Panel(
            "Restarts",
            "short",
            (
                ("{{process}}", "increase(pdv_process_restarts_total[$__rate_interval])"),
                ("{{process}} is away", "1 - pdv_process_up"),
            ),
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": top, "w": 24, "h": 1}
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "gridPos": place, "panels": []}
        )
        top += 1
        for index, panel in enumerate(row):
            x, y = index % _COLUMNS * _WIDTH, top + index // _COLUMNS * _HEIGHT
            place = {"x": x, "y": y, "w": _WIDTH, "h": _HEIGHT}
            panels.append(_panel(panel, len(panels) + 1, place))
        top += -(-len(row) // _COLUMNS) * _HEIGHT
    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return {
        "uid": "pdv-mp",
        "title": "pdv_mp",
        "description": "Made by `python -m pdv_mp.metrics.dashboard > docs/grafana.json`.",
        "tags": ["pdv_mp"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "templating": {"list": [source]},
        "panels": panels,
    }


def _panel(panel: Panel, id: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": id,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": expr,
                "legendFormat": name,
            }
            for index, (name, expr) in enumerate(panel.shown)
        ],
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))
