"""What can be known to be wrong before any process starts, and the defaults that depend on models.

Nothing here imports torch: a mistake on the command line is answered at once.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import psutil

from launcher.checkpoint import check_weights
from launcher.devices import check_device
from launcher.emulated import as_emulated, check_emulated, on_emulated_devices, with_name
from launcher.gateway_child import checked_http
from launcher.handoff_checks import check_handoff
from pdv_mp.assets import draft_path, verifier_path
from pdv_mp.binding import check_exposure, resolve_host
from pdv_mp.config import ConfigError, EngineConfig, ModelOptions, ServerOptions
from pdv_mp.emulation.device_name import is_emulated
from pdv_mp.model.implementation import read_model
from pdv_mp.model.loading import check_pair, resolve_model
from pdv_mp.model.shape import ModelShape
from pdv_mp.speculative_config import folded
from pdv_mp.token_file import read_token, token_path
from pdv_mp.topology import Topology, check_kv_handoff, topology_of

NO_DRAFT = "none"

SMALLEST_REQUEST = 256
"""Tokens of prompt and output that the KV budget must hold at least, or the whole context."""


def prepare(config: EngineConfig) -> EngineConfig:
    """Checks a configuration and fills in what follows from its models.

    The result names models by absolute folders, and has ``max_model_len``, ``served_model_name``
    and ``table`` set. Raises ConfigError or ModelError, one sentence each.
    """
    config = folded(config)
    row = topology_of(config)
    check_kv_handoff(config, row)
    server = _checked_server(config.server)
    http = checked_http(config.http, insecure=server.insecure)
    row, device = common_device(row, config.model.device)
    check_device(device)
    emulated = is_emulated(device)
    model = dataclasses.replace(config.model, device=device)
    if emulated:
        config = dataclasses.replace(config, model=model, table=row)
        check_emulated(config)
        model = with_name(model)
    model = _resolve(model)
    folders = _folders(model)
    shapes: list[ModelShape] = [read_model(folder, model.model_impl) for folder in folders]
    if emulated:
        model, shapes = as_emulated(model, shapes)
    for shape in shapes:
        if model.max_model_len is not None:
            shape.check_max_model_len(model.max_model_len)
    if model.load_format != "dummy" and not emulated:
        for folder, shape in zip(folders, shapes, strict=True):
            check_weights(folder, shape)
    longest = model.max_model_len or min(shape.context_limit for shape in shapes)
    model = dataclasses.replace(model, max_model_len=longest)
    row = served(row, model)
    check_handoff(config, row)
    cores = usable_cores() if config.handoff.exclusive_device else None
    table = with_threads(row, model.threads or cores)
    config = dataclasses.replace(config, model=model, server=server, http=http, table=table)
    _check_kv_budget(config, shapes, longest)
    return config


def _checked_server(server: ServerOptions) -> ServerOptions:
    """The same options with an IP address as ``host`` and an absolute ``token_file``."""
    check_exposure(server)
    token_file = None if server.token_file is None else token_path(server.token_file)
    server = dataclasses.replace(
        server,
        host=resolve_host(server.host),
        metrics_host=resolve_host(server.metrics_host, "--metrics-host"),
        token_file=None if token_file is None else str(token_file),
    )
    if token_file is not None:
        read_token(token_file)
    check_port(server.host, server.port)
    if server.metrics_port is not None:
        check_port(server.metrics_host, server.metrics_port, "metrics-")
    return server


def check_port(host: str, port: int, prefix: str = "") -> None:
    """Raises ConfigError if the IP address and port cannot be listened on. ``prefix``: what the
    names of their options begin with."""
    no_address = f"--{prefix}host {host} is not an address of this machine"
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigError(no_address) from error
    try:
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            raise ConfigError(
                f"--{prefix}host {host} is refused: this machine has no IPv6"
            ) from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(no_address) from error
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"--{prefix}port {port} cannot be used on {host}: {reason}; choose another, or 0 for "
            "a free one"
        ) from error


def common_device(row: Topology, default: str) -> tuple[Topology, str]:
    """The row and where its workers compute. Raises ConfigError if they do not all do so in one
    place, since they share weights and KV; emulated devices need only have one cost table."""
    if any(is_emulated(worker.device or default) for worker in row.workers):
        return on_emulated_devices(row, default)
    devices = {worker.device or default for worker in row.workers}
    if len(devices) > 1:
        raise ConfigError(
            f"topology {row.name!r} has workers on {' and '.join(sorted(devices))}; they share "
            "weights and KV, so all must be on one device"
        )
    return row, devices.pop()


def served(row: Topology, model: ModelOptions) -> Topology:
    """The row as these models need it: without a draft model nobody only drafts."""
    if model.draft_model is not None:
        return row
    workers = tuple(worker for worker in row.workers if worker.stages != ("draft",))
    return dataclasses.replace(row, workers=workers)


def has_draft_model(options: ModelOptions) -> bool:
    """Whether a draft model is served: the shipped one comes with the shipped verifier alone."""
    if options.draft_model is None:
        return options.model is None
    return options.draft_model != NO_DRAFT


def as_described(config: EngineConfig, row: Topology) -> Topology:
    """The row as it would be served, as far as options say so, which no model is read for.

    Raises ConfigError for options that contradict each other.
    """
    model = folded(config).model
    if not has_draft_model(model):
        row = served(row, dataclasses.replace(model, draft_model=None))
    cores = usable_cores() if config.handoff.exclusive_device else None
    return with_threads(row, model.threads or cores)


def with_threads(row: Topology, given: int | None) -> Topology:
    """The row with the CPU threads of each worker: ``given`` for all, else what the row says, else
    an equal share of the cores, at least one."""
    if given is not None:
        workers = tuple(dataclasses.replace(worker, threads=given) for worker in row.workers)
        return dataclasses.replace(row, workers=workers)
    share = threads_in_environment() or max(1, usable_cores() // len(row.worker_names))
    workers = tuple(
        dataclasses.replace(worker, threads=worker.threads or share) for worker in row.workers
    )
    return dataclasses.replace(row, workers=workers)


def threads_in_environment() -> int | None:
    """``OMP_NUM_THREADS``, which is meant for each process, if it is set to a number."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else None


def usable_cores() -> int:
    """Physical cores that this process may use."""
    allowed = len(os.sched_getaffinity(0))
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def _resolve(options: ModelOptions) -> ModelOptions:
    """The same options with absolute folders, and ``draft_model`` None where there is none."""
    shipped = options.model is None
    target = resolve_model(str(verifier_path()) if options.model is None else options.model)
    draft: Path | None = None
    if options.draft_model is None:
        draft = resolve_model(str(draft_path())) if shipped else None
    elif options.draft_model != NO_DRAFT:
        draft = resolve_model(options.draft_model)
    if draft is not None:
        check_pair(target, draft)
    name = options.served_model_name
    if name is None:
        is_folder = options.model is None or Path(options.model).exists()
        name = target.name if is_folder else options.model
    return dataclasses.replace(
        options,
        model=str(target),
        draft_model=None if draft is None else str(draft),
        served_model_name=name,
    )


def _folders(options: ModelOptions) -> list[Path]:
    return [Path(name) for name in (options.model, options.draft_model) if name is not None]


def _check_kv_budget(config: EngineConfig, shapes: Sequence[ModelShape], longest: int) -> None:
    budget = config.cache.kv_cache_memory
    if budget is None:
        return
    dtype = config.model.dtype
    if dtype == "auto":
        on_cpu = config.model.device == "cpu"
        dtype = "float32" if on_cpu else "bfloat16"  # the least that it may turn out to need
    block = config.cache.block_size
    tokens = -(-min(longest, SMALLEST_REQUEST) // block) * block
    needed = tokens * sum(shape.kv_bytes_per_token(dtype) for shape in shapes)
    if config.cache.kv_handoff != "pool":
        needed *= 2  # the prefill worker and the next one have memory of their own
    if budget < needed:
        raise ConfigError(
            f"--kv-cache-memory {budget} is too small: a request of {tokens} tokens needs "
            f"{needed} bytes for the keys and values of both models"
            if len(shapes) > 1
            else f"--kv-cache-memory {budget} is too small: a request of {tokens} tokens needs "
            f"{needed} bytes for its keys and values"
        )
