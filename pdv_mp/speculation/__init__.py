"""Speculative decoding's own rules.

``noise``: Gumbel noise shared by draft and verifier. ``sampling``: logits to tokens.
``acceptance``: which draft tokens are kept.
"""
