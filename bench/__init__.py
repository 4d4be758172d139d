"""Measurement: load, statistics, reports, and the training of the shipped model pair."""
