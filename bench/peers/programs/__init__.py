"""One file for each engine: what it needs, and how it generates.

A file with a ``PEER`` is a peer; that is all there is to adding one. Its program runs in the peer's
own environment, where neither torch nor our packages need be, so these files import at their top
nothing but the standard library and each other, the latter relatively.
"""
