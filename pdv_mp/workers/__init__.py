"""Processes that compute: their loops, what they record, and where their time goes."""
