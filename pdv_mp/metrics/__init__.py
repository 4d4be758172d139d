"""Metrics: histograms, Prometheus' text built from ``info``, and the process that serves it."""
