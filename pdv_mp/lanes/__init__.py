"""Lanes: worker processes that host prefill or draft and work for the scheduler's worker.

A lane gets orders over its edge, runs its stage, and returns results with the stamps of both
messages and of the batch. It owns nothing that could not be sent again: when one dies, it is
started again alone.
"""
