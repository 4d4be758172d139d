"""Prometheus' text format, built from the server's ``info``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any, cast

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from pdv_mp.metrics.catalogue import METRICS
from pdv_mp.metrics.catalogue import Metric as Described
from pdv_mp.metrics.reading import Distribution, Value

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

ENGINE = "0"
"""The label ``engine`` of vLLM's metrics: the front counts for all replicas together."""

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily

_FAMILIES: dict[str, type[Any]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


def exposition(info: Mapping[str, object]) -> str:
    """The metrics of a server that answered ``info`` with these fields, in Prometheus' text format;
    :data:`CONTENT_TYPE` is its type."""
    return generate_latest(_Answer(cast(Mapping[str, Any], info))).decode()


class _Answer(Collector):
    """One ``info`` as prometheus_client takes it."""

    def __init__(self, info: Mapping[str, Any]) -> None:
        self._info = info
        self._model = str((info.get("facts") or {}).get("model", ""))

    def collect(self) -> Iterator[Metric]:
        """Every family, those without a sample included."""
        for metric in METRICS:
            shared = metric.name.startswith("vllm:")
            names = ("model_name", "engine") if shared else ()
            given = (self._model, ENGINE) if shared else ()
            family = _FAMILIES[metric.kind](
                metric.name, metric.help, labels=(*names, *metric.labels)
            )
            for sample in metric.read(self._info):
                _add(family, metric, (*given, *sample.labels), sample)
            yield family


def _add(
    family: Any, metric: Described, labels: tuple[str, ...], sample: Value | Distribution
) -> None:
    if isinstance(sample, Value):
        family.add_metric(labels, sample.value)
        return
    bounds = [*map(floatToGoString, sample.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(sample.counts), strict=True))
    family.add_metric(labels, buckets, sample.sum)
