"""The command ``pdv-launch``: reads the options, checks them, and runs the supervisor.

Exit status: 0 stopped as asked, 1 runtime failure, 2 wrong use or configuration, 3 a process did
not start, 4 a process died.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from launcher.child import ChildSpec
from launcher.entry import run_command
from launcher.gateway_child import exposed, gateway_spec, open_listener, url_of
from launcher.options import ENVIRONMENT_CONFIG, SettingOption, merge, settings
from launcher.output import PROGRAM, say, write_line
from launcher.phases import EXIT_RUNTIME, Timeouts
from launcher.restarts import RestartPolicy
from launcher.run_directory import RunDirectory, sweep_stale
from launcher.signals import SignalFlags
from launcher.supervisor import WATCHED_SIGNALS, ReadyReport, Supervisor
from launcher.topology_drawing import draw
from launcher.trace_file import check_trace_path, write_trace
from pdv_mp.binding import is_loopback
from pdv_mp.config import ConfigError, EngineConfig, option_groups
from pdv_mp.model.errors import ModelError
from pdv_mp.process import CONFIG_FILE, READY_FILE, environment_for_children
from pdv_mp.speculative_config import ngram_of
from pdv_mp.topology import FRONT, topology, topology_of
from pdv_mp.topology_rows import GATEWAY, METRICS


class LaunchCommand(click.Command):
    """The command with one section of help per group of options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options, grouped as the configuration is."""
        sections: dict[str, list[tuple[str, str]]] = {"Launching": []}
        for name, group in option_groups().items():
            summary = (group.__doc__ or "").splitlines()[0].rstrip(".")
            sections[f"{name.capitalize()} ({summary[0].lower()}{summary[1:]})"] = []
        titles = dict(zip(("", *option_groups()), sections, strict=True))
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                group_name = parameter.setting.group if isinstance(parameter, SettingOption) else ""
                sections[titles[group_name]].append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _launch(
    config_file: Path | None,
    print_config: bool,
    describe_topology: str | None,
    ready_file: Path | None,
    ready_fd: int | None,
    parent_fd: int | None,
    **options: Any,
) -> int:
    try:
        return _checked_launch(
            config_file, print_config, describe_topology, ready_file, ready_fd, parent_fd, options
        )
    except (ConfigError, ModelError) as error:
        raise click.UsageError(str(error)) from error


def _checked_launch(
    config_file: Path | None,
    print_config: bool,
    describe_topology: str | None,
    ready_file: Path | None,
    ready_fd: int | None,
    parent_fd: int | None,
    options: dict[str, Any],
) -> int:
    """Raises ConfigError or ModelError for what can be known to be wrong before the start."""
    context = click.get_current_context()
    given = {
        name: value
        for name, value in options.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    values = merge(given, os.environ, config_file)
    for warning in values.warnings:
        say(f"warning: {warning}")
    config = values.config()
    if describe_topology is not None:
        click.echo(_described(config, describe_topology), nl=False)
        return 0
    topology_of(config)
    if print_config:
        click.echo(values.as_yaml())
        return 0
    for flag, fd in (("--ready-fd", ready_fd), ("--parent-fd", parent_fd)):
        if fd is not None:
            _check_fd(flag, fd)
    if ready_file is not None:
        _check_ready_file(ready_file)
    if config.server.trace is not None:
        check_trace_path(Path(config.server.trace))
    from launcher.checks import prepare

    asked = topology_of(config)
    config = prepare(config)
    if ngram_of(config.speculation) is not None and "draft" in asked.lanes(0):
        say(
            f"topology {asked.name!r} is served without its draft process: n-gram drafts are "
            "looked up by the process that verifies"
        )
    for warning in values.without_drafts(config):
        say(f"warning: {warning}")
    server = config.server
    if server.token_file is None and not is_loopback(server.host):
        say(f"warning: --insecure: whoever can reach {server.host} may use this server")
    if server.metrics_port is not None and not is_loopback(server.metrics_host):
        say(f"warning: --insecure: whoever can reach {server.metrics_host} may read the metrics")
    if exposed(config.http):
        say(f"warning: --insecure: whoever can reach {config.http.http_host} may use the gateway")
    return serve(config, ready_file=ready_file, ready_fd=ready_fd, parent_fd=parent_fd)


def _described(config: EngineConfig, name: str) -> str:
    from launcher.checks import as_described

    return draw(as_described(config, topology(name) if name else topology_of(config)))


def make_command() -> click.Command:
    """The click command of ``pdv-launch``."""
    parameters: list[click.Parameter] = [
        *(SettingOption(setting) for setting in settings() if not setting.group),
        click.Option(
            ["--config", "config_file"],
            type=click.Path(path_type=Path),
            envvar=ENVIRONMENT_CONFIG,
            metavar="FILE",
            help=f"read options from a YAML file  [{ENVIRONMENT_CONFIG}]",
        ),
        click.Option(
            ["--print-config"],
            is_flag=True,
            help="print the effective values with their sources, and exit",
        ),
        click.Option(
            ["--describe-topology"],
            is_flag=False,
            flag_value="",
            metavar="[NAME]",
            help="draw the processes, stages, sockets and pools of a topology, by default of "
            "--topology-file or --topology, and exit",
        ),
        click.Option(
            ["--ready-file"],
            type=click.Path(path_type=Path),
            metavar="PATH",
            help="when ready, write a JSON file: endpoint, ipc, run_dir, topology, token_file, "
            "pids, http with --http-port, metrics with --metrics-port; it is written anew when a "
            "process was restarted, and removed at the end, but stays if pdv-launch itself is "
            "killed by SIGKILL",
        ),
        click.Option(
            ["--ready-fd"],
            type=click.INT,
            metavar="N",
            help="when ready, write the same to this open file descriptor, and close it",
        ),
        click.Option(["--parent-fd"], type=click.INT, hidden=True),
        *(SettingOption(setting) for setting in settings() if setting.group),
    ]
    return LaunchCommand(
        PROGRAM,
        callback=_launch,
        params=parameters,
        context_settings={
            "token_normalize_func": lambda token: token.replace("_", "-"),
            "help_option_names": ["-h", "--help"],
            "max_content_width": 100,
        },
        help="Serve a verifier and its draft model over ZeroMQ.\n\n"
        "Every option can also be set by the environment variable shown in brackets or, by its "
        "name, in the YAML file of --config; the command line wins over the environment, and the "
        "environment over the file.",
        epilog="The first SIGTERM, SIGINT or SIGHUP finishes the open requests, the second aborts "
        "them. Exit status: 0 stopped as asked, 1 runtime failure, 2 wrong use or configuration, "
        "3 a process did not start, 4 a process died.",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``pdv-launch``; returns the exit status."""
    return run_command(make_command(), PROGRAM, arguments)


def serve(
    config: EngineConfig,
    *,
    ready_file: Path | None = None,
    ready_fd: int | None = None,
    parent_fd: int | None = None,
) -> int:
    """Runs the processes of a prepared configuration until they end; returns the exit status."""
    started = time.monotonic()
    os.umask(0o077)
    with ExitStack() as stack:
        signals = stack.enter_context(SignalFlags(WATCHED_SIGNALS))
        listener = open_listener(config.http)
        if listener is not None:
            stack.enter_context(listener)
        sweep_stale()
        run_directory = RunDirectory()
        try:
            run_directory.write(CONFIG_FILE, config.to_json())
            code = _supervise(
                config,
                run_directory.path,
                signals,
                started,
                ready_file,
                ready_fd,
                parent_fd,
                listener,
            )
            return _with_trace(config, run_directory.path, code)
        except OSError as error:
            say(str(error))
            return EXIT_RUNTIME
        finally:
            run_directory.remove()
            if ready_file is not None:
                _remove(ready_file)


def _remove(ready_file: Path) -> None:
    try:
        ready_file.unlink(missing_ok=True)
    except OSError as error:
        say(f"--ready-file {ready_file} could not be removed: {error.strerror or error}")


def _with_trace(config: EngineConfig, run_dir: Path, code: int) -> int:
    """Writes the file of ``--trace``; the exit status after that."""
    if config.server.trace is None:
        return code
    try:
        write_trace(run_dir, topology_of(config), Path(config.server.trace))
    except OSError as error:
        say(f"--trace {config.server.trace} was not written: {error.strerror or error}")
        return code or EXIT_RUNTIME
    return code


def _supervise(
    config: EngineConfig,
    run_dir: Path,
    signals: SignalFlags,
    started: float,
    ready_file: Path | None,
    ready_fd: int | None,
    parent_fd: int | None,
    listener: socket.socket | None,
) -> int:
    row = topology_of(config)
    url = None if listener is None else url_of(listener)
    files = [path for path in (run_dir / READY_FILE, ready_file) if path is not None]
    beside = (
        *(() if listener is None else (GATEWAY,)),
        *(() if config.server.metrics_port is None else (METRICS,)),
    )

    def describe(report: ReadyReport) -> str:
        front = report.facts[FRONT]
        facts = {
            "endpoint": front["endpoint"],
            "ipc": front["ipc"],
            "run_dir": str(run_dir),
            "topology": row.name,
            "token_file": config.server.token_file,
            "pids": {"launcher": os.getpid(), **report.pids},
        }
        places = {"http": url, "metrics": _metrics_url(report)}
        facts.update({name: place for name, place in places.items() if place is not None})
        return json.dumps(facts, indent=2) + "\n"

    def on_ready(report: ReadyReport) -> None:
        front = report.facts[FRONT]
        text = describe(report)
        for path in files:
            write_whole(path, text)
        if ready_fd is not None:
            with open(ready_fd, "w", encoding="utf-8") as pipe:
                pipe.write(text)
        endpoints = filter(None, [front["endpoint"], url, _metrics_url(report)])
        say(
            f"ready on {', '.join(endpoints)} and {front['ipc']} "
            f"(topology={row.name}, {len(report.pids)} processes, "
            f"{time.monotonic() - started:.1f} s)"
        )

    def on_restarted(report: ReadyReport) -> None:
        for path in files:
            try:
                write_whole(path, describe(report))
            except OSError as error:
                say(f"{path} keeps an old process id: {error.strerror}")

    def specify(name: str, generations: Mapping[str, int]) -> ChildSpec:
        spec = child_spec(config, name, run_dir, generations)
        return spec if listener is None or name != GATEWAY else gateway_spec(spec, listener)

    supervisor = Supervisor(
        run_dir,
        row,
        specify,
        signals,
        on_ready=on_ready,
        on_restarted=on_restarted,
        report=write_line,
        timeouts=Timeouts(drain=config.server.shutdown_timeout, answer=config.server.lane_timeout),
        restarts=RestartPolicy(
            max_restarts=config.server.max_restarts, window=config.server.restart_window
        ),
        parent_fd=parent_fd,
        beside=beside,
    )
    return supervisor.run()


def _metrics_url(report: ReadyReport) -> str | None:
    """Where the metrics are, if they are served."""
    url: str | None = report.facts.get(METRICS, {}).get("endpoint")
    return url


OMP_SPIN_COUNT = os.environ.get("GOMP_SPINCOUNT", "10000")
"""Turns that an idle kernel thread spins before it sleeps, a few hundred microseconds: long enough
to bridge the gap between two kernels of one forward pass, short enough to leave the core to others
between two batches."""


def child_spec(
    config: EngineConfig, name: str, run_dir: Path, generations: Mapping[str, int]
) -> ChildSpec:
    """The command line and the environment of one child of a prepared configuration.

    Kernels' threads are bounded before Python starts: several processes that each start one thread
    per core and spin would slow each other down by an order of magnitude.
    """
    row = topology_of(config)
    threads = str(row.place(name)[0].threads) if name in row.worker_names else "1"
    environment = {
        **environment_for_children(),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": OMP_SPIN_COUNT,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # the models are local folders by now
    }
    command = [
        sys.executable,
        *("-m", "pdv_mp.process", name),
        *("--run-dir", str(run_dir)),
        *("--generation", str(generations[name])),
        *("--generations", json.dumps(generations)),
        *("--parent-pid", str(os.getpid())),
    ]
    return ChildSpec(name, command, environment)


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that a reader sees either nothing or all of it."""
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _check_ready_file(path: Path) -> None:
    """Removes an old one, so that nobody reads it as the new one. Raises ConfigError."""
    if not path.parent.is_dir():
        raise ConfigError(f"--ready-file {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise ConfigError(f"--ready-file {path} is a folder")
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"--ready-file {path} cannot be written: {error.strerror}") from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--ready-file {path}: the folder {path.parent} cannot be written to")


def _check_fd(flag: str, fd: int) -> None:
    try:
        os.fstat(fd)
    except OSError as error:
        raise ConfigError(f"{flag} {fd} is not an open file descriptor") from error
