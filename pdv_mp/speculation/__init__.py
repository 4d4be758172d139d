"""Speculative decoding's own rules.

``noise``: random numbers by seed and position. ``sampling``: logits to tokens. ``acceptance``: the
interface of what decides which draft tokens are kept; ``shared_gumbel`` and ``rejection``: the two
rules; ``rules``: their names.
"""
