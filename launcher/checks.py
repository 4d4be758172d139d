"""What can be known to be wrong before any process starts, and the defaults that depend on models.

Nothing here imports torch: a mistake on the command line is answered at once.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import socket
from pathlib import Path

import psutil

from launcher.checkpoint import check_weights
from launcher.devices import check_device
from pdv_mp.assets import draft_path, verifier_path
from pdv_mp.config import ConfigError, EngineConfig, ModelOptions
from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.loading import check_pair, resolve_model
from pdv_mp.topology import topology

NO_DRAFT = "none"

SMALLEST_REQUEST = 256
"""Tokens of prompt and output that the KV budget must hold at least, or the whole context."""


def prepare(config: EngineConfig) -> EngineConfig:
    """Checks a configuration and fills in what follows from its models.

    The result names models by absolute folders, and has ``max_model_len``, ``threads`` and
    ``served_model_name`` set. Raises ConfigError or ModelError, one sentence each.
    """
    topology(config.topology)
    host = check_host(config.server.host)
    if config.server.port:
        check_port(host, config.server.port)
    server = dataclasses.replace(config.server, host=host)
    model = _resolve(config.model)
    check_device(model.device)
    folders = _folders(model)
    shapes = [ModelConfig.from_folder(folder) for folder in folders]
    for shape in shapes:
        if model.max_model_len is not None:
            shape.check_max_model_len(model.max_model_len)
    if model.load_format != "dummy":
        for folder, shape in zip(folders, shapes, strict=True):
            check_weights(folder, shape)
    longest = model.max_model_len or min(shape.context_limit for shape in shapes)
    threads = model.threads or default_threads()
    model = dataclasses.replace(model, max_model_len=longest, threads=threads)
    config = dataclasses.replace(config, model=model, server=server)
    _check_kv_budget(config, shapes, longest)
    return config


def check_host(host: str) -> str:
    """The address to bind for ``--host``. Raises ConfigError for one that is not loopback."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError as error:
        raise ConfigError(f"--host {host!r} is not an IP address; use 127.0.0.1") from error
    if not address.is_loopback or address.version != 4:
        raise ConfigError(
            f"--host {host} is refused: other machines could connect, and clients cannot be asked "
            "for a token yet; use 127.0.0.1"
            if not address.is_loopback
            else f"--host {host} is refused: only IPv4 is served; use 127.0.0.1"
        )
    return str(address)


def check_port(host: str, port: int) -> None:
    """Raises ConfigError if another program listens on the port, or it may not be bound."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError(
                f"--port {port} cannot be used on {host}: {reason}; "
                "choose another, or 0 for a free one"
            ) from error


def default_threads() -> int:
    """``OMP_NUM_THREADS`` if it is set, else the cores that this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
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


def _check_kv_budget(config: EngineConfig, shapes: list[ModelConfig], longest: int) -> None:
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
    if budget < needed:
        raise ConfigError(
            f"--kv-cache-memory {budget} is too small: a request of {tokens} tokens needs "
            f"{needed} bytes for the keys and values of both models"
            if len(shapes) > 1
            else f"--kv-cache-memory {budget} is too small: a request of {tokens} tokens needs "
            f"{needed} bytes for its keys and values"
        )
