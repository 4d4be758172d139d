"""All peers: every file of :mod:`bench.peers.programs` that has a ``PEER``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from functools import lru_cache

from bench.peers import programs
from bench.peers.errors import PeersError
from bench.peers.plan import OURS, Choice
from bench.peers.programs.peer import Peer


@lru_cache(maxsize=1)
def peers() -> dict[str, tuple[str, Peer]]:
    """By name: the module of its program and what it says of itself; ours first."""
    found = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(programs.__path__)):
        if module == "start":  # the only one that is a script
            continue
        peer = getattr(importlib.import_module(f"{programs.__name__}.{module}"), "PEER", None)
        if peer is not None:
            found[peer.name] = (module, peer)
    return dict(sorted(found.items(), key=lambda item: (item[0] != OURS, item[0])))


def chosen(names: Sequence[str]) -> list[Choice]:
    """Peers and modes: ``NAME`` stands for all its modes, ``NAME:MODE`` for one. Raises
    PeersError for a name that there is not."""
    known = peers()
    result: list[Choice] = []
    for text in names:
        name, _, mode = text.partition(":")
        if name not in known:
            raise PeersError(f"there is no peer {name!r}; there are {', '.join(known)}")
        peer = known[name][1]
        if mode and mode not in peer.modes:
            raise PeersError(f"{name} has no mode {mode!r}; it has {', '.join(peer.modes)}")
        wanted = (mode,) if mode else peer.modes
        result += [Choice(name, one, peer.most.get(one)) for one in wanted]
    return list(dict.fromkeys(result))
