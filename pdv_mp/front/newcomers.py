"""Tells the clients' connections apart.

A routing id does not say who is at the other end: a client may choose its own, and so take that of
one that has left. libzmq's authentication protocol (ZAP, https://rfc.zeromq.org/spec/27/) asks the
application about every new connection, and writes the answer on all messages of that connection.
The answer here is a number.
"""

from __future__ import annotations

from typing import Any

import zmq

from pdv_mp.front.unfinished import UnfinishedMessages

_ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_ZAP_VERSION = b"1.0"
_DOMAIN = b"clients"


class Newcomers:
    """Admits connections to a socket of the same context and numbers them.

    ``socket`` is readable when there are new ones; none can say anything before :meth:`admit`.
    ``last_number``: that of the newest. ``unfinished`` is told of each before it has a number.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        guarded: zmq.Socket[Any],
        unfinished: UnfinishedMessages,
    ) -> None:
        self.socket = context.socket(zmq.ROUTER)
        for option in (zmq.LINGER, zmq.SNDHWM, zmq.RCVHWM):
            self.socket.setsockopt(option, 0)
        self.socket.bind(_ZAP_ENDPOINT)
        guarded.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN)
        self._unfinished = unfinished
        self.last_number = 0

    def admit(self, most: int) -> None:
        """Admit those that wait, at most so many."""
        for _ in range(most):
            try:
                asker, _, _, request, *_ = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._unfinished.note_accepted(self.last_number)
            self.last_number += 1
            number = str(self.last_number).encode()
            answer = (_ZAP_VERSION, request, b"200", b"OK", number, b"")
            self.socket.send_multipart((asker, b"", *answer), zmq.NOBLOCK)

    def close(self) -> None:
        """Close the socket; no connection is admitted any more."""
        self.socket.close()


def link_number(frame: zmq.Frame) -> int:
    """The number of the transport connection from which a frame came."""
    return int(frame.get("User-Id"))
