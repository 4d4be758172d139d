"""Who may ask for what: on a server with a token, a connection must have said it first."""

from __future__ import annotations

import hmac
import logging

from pdv_mp.binding import check_exposure
from pdv_mp.config import ServerOptions
from pdv_mp.front.outbox import Connection
from pdv_mp.token_file import read_token, token_path
from pdv_mp.wire.client_messages import Hello
from pdv_mp.wire.protocol import ErrorCode, ProtocolError

logger = logging.getLogger(__name__)

WITHOUT_TOKEN = frozenset({"hello", "ping"})
"""Types of messages that anyone may send to a server with a token."""


class Authentication:
    """The server's token, if it has one, and the rule about it.

    Raises ConfigError for a token file that cannot be used, and for an address that other machines
    can reach without a token.
    """

    def __init__(self, server: ServerOptions) -> None:
        check_exposure(server)
        path = server.token_file
        self._token = None if path is None else read_token(token_path(path)).encode()

    def allowed(self, connection: Connection) -> frozenset[str] | None:
        """The types of messages that a connection may send now; None: all."""
        if self._token is None or connection.authenticated:
            return None
        return WITHOUT_TOKEN

    def hello(self, connection: Connection, message: Hello) -> None:
        """Take note of the token in a ``hello``; one without a token changes nothing. Raises
        ProtocolError for a wrong one."""
        if self._token is None or message.token is None:
            return
        if not hmac.compare_digest(message.token.encode(), self._token):
            logger.info("connection %d gave a wrong token", connection.number)
            raise ProtocolError(ErrorCode.UNAUTHENTICATED, "the token in hello is wrong")
        connection.authenticated = True
