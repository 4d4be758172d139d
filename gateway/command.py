"""The command ``pdv-gateway``: the gateway to a server that runs elsewhere, or was started without.

Exit status: 0 stopped as asked, 1 runtime failure, 2 wrong use.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.keys import read_api_key
from gateway.listening import NEEDED, listen, url_of
from launcher.entry import run_command
from launcher.ranges import FiniteRange
from pdv_mp.binding import is_loopback, resolve_host
from pdv_mp.config import ConfigError, HttpOptions, ServerOptions
from pdv_mp.token_file import read_token, token_path

if TYPE_CHECKING:
    from gateway.server import HttpServer

PROGRAM = "pdv-gateway"
_HTTP = HttpOptions()


@click.command(
    epilog="The first SIGTERM, SIGINT or SIGHUP finishes the open requests, the second ends them. "
    "Exit status: 0 stopped as asked, 1 runtime failure, 2 wrong use."
)
@click.option(
    "--connect",
    required=True,
    envvar="PDV_CONNECT",
    metavar="ENDPOINT",
    help="the server's tcp:// or ipc:// endpoint  [PDV_CONNECT]",
)
@click.option("--host", default=_HTTP.http_host, show_default=True, help="address to listen on")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="port to listen on; 0 picks a free one",
)
@click.option(
    "--api-key-file",
    envvar="PDV_API_KEY_FILE",
    metavar="PATH",
    help="file with the key that HTTP clients must send  [PDV_API_KEY_FILE]",
)
@click.option(
    "--token-file",
    envvar="PDV_TOKEN_FILE",
    metavar="PATH",
    help="file with the token that the server asks for  [PDV_TOKEN_FILE]",
)
@click.option("--insecure", is_flag=True, help="serve other machines without a key")
@click.option(
    "--max-body-bytes",
    type=click.IntRange(1024),
    default=_HTTP.http_max_body_bytes,
    show_default=True,
    help="largest body of a request",
)
@click.option(
    "--body-timeout",
    type=FiniteRange(0.1),
    default=_HTTP.http_body_timeout,
    show_default=True,
    help="seconds in which a body must arrive",
)
@click.option(
    "--header-timeout",
    type=FiniteRange(0.1),
    default=20.0,
    show_default=True,
    help="seconds in which the headers of a request must arrive",
)
@click.option(
    "--write-timeout",
    type=FiniteRange(0.1),
    default=60.0,
    show_default=True,
    help="seconds after which a client that reads nothing is disconnected",
)
@click.option(
    "--shutdown-timeout",
    type=FiniteRange(0.0),
    default=ServerOptions().shutdown_timeout,
    show_default=True,
    help="seconds that open requests have to finish at the end",
)
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PATH",
    help="when listening, write a JSON file: http, pid; it is removed at the end",
)
@click.option(
    "--log-level",
    type=click.Choice(("debug", "info", "warning", "error")),
    default="warning",
    show_default=True,
)
def command(
    connect: str,
    host: str,
    port: int,
    api_key_file: str | None,
    token_file: str | None,
    insecure: bool,
    max_body_bytes: int,
    body_timeout: float,
    header_timeout: float,
    write_timeout: float,
    shutdown_timeout: float,
    ready_file: Path | None,
    log_level: str,
) -> int:
    """Serve the OpenAI API over HTTP for a running pdv_mp server."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise click.UsageError(f"{', '.join(missing)} missing: pip install 'pdv-mp[http]'")
    os.umask(0o077)
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        address = resolve_host(host)
        if api_key_file is None and not is_loopback(address):
            if not insecure:
                raise ConfigError(
                    f"--host {host} lets other machines connect: give an --api-key-file, whose key "
                    "clients must then send, or --insecure to serve everyone"
                )
            click.echo(f"{PROGRAM}: warning: whoever can reach {address} may use it", err=True)
        key = None if api_key_file is None else read_api_key(api_key_file)
        token = None if token_file is None else read_token(token_path(token_file))
        listener = listen(address, port)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    with listener:
        return asyncio.run(
            _serve(
                connect,
                token,
                listener,
                (max_body_bytes, body_timeout, header_timeout, write_timeout),
                key,
                shutdown_timeout,
                ready_file,
            )
        )


async def _serve(
    endpoint: str,
    token: str | None,
    listener: socket.socket,
    limits: tuple[int, float, float, float],
    key: str | None,
    shutdown_timeout: float,
    ready_file: Path | None,
) -> int:
    from gateway.backend import Backend
    from gateway.guard import Limits
    from gateway.server import HttpServer, allow_many_connections
    from gateway.service import GatewayService

    allow_many_connections()
    try:
        service = GatewayService(Backend(endpoint, token))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    server = HttpServer(service, listener, Limits(*limits), key)
    wishes: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, wishes.put_nowait, number.name)
    url = url_of(listener)
    try:
        await server.start()
        if ready_file is not None:
            _write(ready_file, {"http": url, "pid": os.getpid()})
        click.echo(f"{PROGRAM}: ready on {url} for {endpoint}", err=True)
        await _until_ended(server, wishes, shutdown_timeout)
        await server.close()
    finally:
        service.close()
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)
    return 0


async def _until_ended(
    server: HttpServer, wishes: asyncio.Queue[str], shutdown_timeout: float
) -> None:
    reason = await wishes.get()
    click.echo(f"{PROGRAM}: {reason}: draining; once more to abort", err=True)
    draining = asyncio.create_task(server.drain())
    again = asyncio.create_task(wishes.get())
    done = await asyncio.wait(
        (draining, again), timeout=shutdown_timeout, return_when=asyncio.FIRST_COMPLETED
    )
    if draining not in done[0]:
        click.echo(f"{PROGRAM}: ending open requests", err=True)
    for task in (draining, again):
        task.cancel()


def _write(path: Path, facts: dict[str, object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``pdv-gateway``; returns the exit status."""
    return run_command(command, PROGRAM, arguments)


if __name__ == "__main__":
    sys.exit(main())
