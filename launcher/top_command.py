"""The command ``pdv-top``: what a running server does, in a terminal."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console, RenderableType
from rich.live import Live

from launcher.entry import run_command
from launcher.ranges import FiniteRange
from launcher.top_rates import Snapshot, Window
from launcher.top_view import WIDTH, view, waiting
from pdv_mp.client.client import DEFAULT_ENDPOINT, Client, ServerError, ServerUnreachable
from pdv_mp.config import ConfigError
from pdv_mp.token_file import read_token, token_path
from pdv_mp.wire.protocol import ProtocolError

PROGRAM = "pdv-top"

PATIENCE_SECONDS = 2.0
"""Without an answer for so long, a server is shown as gone."""

_FONT_FACE = re.compile(r"@font-face\s*{[^}]*}\s*")


@click.command()
@click.option(
    "--connect",
    "endpoint",
    default=DEFAULT_ENDPOINT,
    show_default=True,
    help="the server's tcp:// or ipc:// endpoint",
)
@click.option(
    "--token-file",
    envvar="PDV_TOKEN_FILE",
    metavar="PATH",
    help="file with the token that the server asks for  [PDV_TOKEN_FILE]",
)
@click.option("--once", is_flag=True, help="watch for one interval, print, and exit")
@click.option(
    "--interval",
    type=FiniteRange(min=0.1),
    default=1.0,
    show_default=True,
    help="seconds between two looks",
)
@click.option(
    "--window",
    type=FiniteRange(min=0.1),
    default=10.0,
    show_default=True,
    help="seconds over which rates and percentiles are taken",
)
@click.option(
    "--svg",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="with --once: also draw what is printed into this file",
)
def command(
    endpoint: str,
    token_file: str | None,
    once: bool,
    interval: float,
    window: float,
    svg: Path | None,
) -> None:
    """Show a running server: its processes, stages, edges, speculation and latencies.

    Ctrl-C ends it. Exit status: 0 done, 1 the server could not be reached with --once or refused to
    answer, 2 a mistake on the command line.
    """
    if not endpoint.startswith(("tcp://", "ipc://")):
        raise click.UsageError(f"--connect {endpoint!r} must begin with tcp:// or ipc://")
    if svg is not None and not once:
        raise click.UsageError("--svg needs --once")
    try:
        token = None if token_file is None else read_token(token_path(token_file))
        client = Client(
            endpoint, timeout=PATIENCE_SECONDS, connect_timeout=PATIENCE_SECONDS, token=token
        )
    except (ConfigError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    with client:
        watch = _Watch(client, window)
        try:
            if once:
                _once(watch, interval, svg)
            else:
                _live(watch, interval)
        except ServerError as error:
            raise click.ClickException(str(error)) from error


class _Watch:
    """Looks at a server and knows what to show of it."""

    def __init__(self, client: Client, window: float) -> None:
        self._client = client
        self._window = Window(window)
        self._heard: float | None = None

    def look(self) -> None:
        """Ask once. Raises ServerUnreachable or ProtocolError without an answer, ServerError for a
        refusal."""
        self._window.add(Snapshot(time.monotonic(), self._client.info(batches=0)))
        self._heard = time.monotonic()

    @property
    def picture(self) -> RenderableType:
        """The server as it was when it was last heard."""
        trouble = None
        if self._heard is not None:
            silence = time.monotonic() - self._heard
            if silence >= PATIENCE_SECONDS:
                trouble = f"no answer for {silence:.0f} s: the server is gone, or busy restarting"
        span = self._window.span
        if span is None:
            return waiting(self._client.endpoint, "nothing is heard; is a server running there?")
        return view(span, self._client.endpoint, trouble)


def _once(watch: _Watch, interval: float, svg: Path | None) -> None:
    try:
        watch.look()
        time.sleep(interval)
        watch.look()
    except (ServerUnreachable, ProtocolError) as error:
        raise click.ClickException(str(error)) from error
    console = Console(highlight=False, width=WIDTH if svg is not None else None)
    console.print(watch.picture)
    if svg is not None:
        draw(watch.picture, svg)


def draw(picture: RenderableType, file: Path) -> None:
    """Draw into an SVG file that needs no other: its font is the reader's own. Raises click's
    ClickException if it cannot be written."""
    with open("/dev/null", "w", encoding="utf-8") as nowhere:
        console = Console(
            file=nowhere, record=True, width=WIDTH, force_terminal=True, color_system="truecolor"
        )
        console.print(picture)
    try:
        text = _FONT_FACE.sub("", console.export_svg(title=PROGRAM, unique_id=PROGRAM))
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"--svg {file} was not written: {error.strerror}") from error


def _live(watch: _Watch, interval: float) -> None:
    """Until Ctrl-C. Where the output is no terminal, one picture after the other."""
    console = Console(highlight=False)
    try:
        if not console.is_terminal:
            while True:
                _try(watch)
                console.print(watch.picture, "")
                time.sleep(interval)
        with Live(watch.picture, console=console, screen=True, auto_refresh=False) as live:
            while True:
                _try(watch)
                live.update(watch.picture, refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:
        return


def _try(watch: _Watch) -> None:
    """Look; that nobody answers is seen in the picture."""
    try:
        watch.look()
    except (ServerUnreachable, ProtocolError):
        return


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``pdv-top``; returns the exit status."""
    return run_command(command, PROGRAM, arguments)
