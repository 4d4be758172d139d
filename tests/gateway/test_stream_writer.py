"""What a stream's writer does to its connection."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gateway.http_connection import HttpConnection
from gateway.stream_writer import StreamWriter


class Reading(asyncio.Transport):
    """A connection that says whether it is read from."""

    def __init__(self) -> None:
        super().__init__()
        self.is_paused = False

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


def test_a_connection_that_a_long_body_stopped_is_read_again_to_notice_a_hangup() -> None:
    """The last part of a body stops the reading if it is long, and nobody asks for another one."""
    told: list[str] = []
    transport = Reading()
    flow = FlowControl(transport)
    cycle = SimpleNamespace(scope={"http_version": "1.1"}, flow=flow, disconnected=False)
    writer = StreamWriter(cast(RequestResponseCycle, cycle))
    flow.pause_reading()
    assert transport.is_paused
    writer.on_hangup(lambda: told.append("gone"))
    assert not transport.is_paused
    assert told == []


def test_who_asks_after_the_hangup_is_told_at_once() -> None:
    told: list[str] = []
    flow = FlowControl(Reading())
    cycle = SimpleNamespace(scope={"http_version": "1.1"}, flow=flow, disconnected=True)
    StreamWriter(cast(RequestResponseCycle, cycle)).on_hangup(lambda: told.append("gone"))
    assert told == ["gone"]


def test_only_who_reads_nothing_for_so_long_is_cut_off() -> None:
    done: list[str] = []
    waiting = iter([100, 60, 60])
    transport = SimpleNamespace(
        get_write_buffer_size=lambda: next(waiting), abort=lambda: done.append("cut")
    )
    connection = cast(HttpConnection, SimpleNamespace(transport=transport))
    connection._expect_reading = lambda: done.append("again")  # type: ignore[method-assign]
    HttpConnection._unread(connection, 101)
    HttpConnection._unread(connection, 100)
    assert done == ["again", "again"]
    HttpConnection._unread(connection, 60)
    assert done == ["again", "again", "cut"]
