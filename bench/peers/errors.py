"""What goes wrong with peers."""


class PeerError(RuntimeError):
    """A peer cannot be installed, does not start, dies or does not answer; the message says why."""


class PeersError(RuntimeError):
    """The comparison as a whole cannot be made; the message says why."""
