"""Pools: shared buffers, KV caches and the accounting of their blocks."""
