"""Configuration: frozen dataclasses, in which every default is written once.

Each field is made by :func:`option`, which keeps its help, range and choices beside its default.
The command line, the environment variables, the YAML file and ``--print-config`` are all derived
from these fields, so a new option is one line here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from pdv_mp.topology_rows import Topology


class ConfigError(ValueError):
    """A configuration value is missing, unknown or out of range; the message names it."""


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """What is known of one option besides its name, type and default.

    ``words``: texts that a number's place may be taken by.
    """

    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    metavar: str | None = None
    aliases: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    metavar: str | None = None,
    aliases: tuple[str, ...] = (),
    words: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that carries its own documentation and limits."""
    info = OptionInfo(help, choices, minimum, maximum, metavar, aliases, words)
    return dataclasses.field(default=default, metadata={"option": info})


def option_info(field: dataclasses.Field[Any]) -> OptionInfo:
    """The :class:`OptionInfo` of a field made by :func:`option`."""
    info = field.metadata["option"]
    if not isinstance(info, OptionInfo):
        raise TypeError(f"field {field.name} was not made by option()")
    return info


def flag_name(field_name: str) -> str:
    """``max_num_seqs`` -> ``--max-num-seqs``."""
    return "--" + field_name.replace("_", "-")


def check_text(text: str, what: str) -> None:
    """Raises ConfigError for text that UTF-8 cannot hold, as of a file's name in another encoding:
    no message could carry it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{what} {text!r} is not text in UTF-8") from error


class _Checked:
    """Checks every option's choices and range when a configuration is made."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            info = option_info(field)
            value = getattr(self, field.name)
            if value is None or value in info.words:
                continue
            if info.words and not isinstance(value, int):
                raise ConfigError(
                    f"{flag_name(field.name)} {value!r} is neither a number nor "
                    f"{' or '.join(info.words)}"
                )
            if isinstance(value, str):
                check_text(value, flag_name(field.name))
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{flag_name(field.name)} {value!r} must be a finite number")
            if info.choices and value not in info.choices:
                raise ConfigError(
                    f"{flag_name(field.name)} {value!r} is not one of {', '.join(info.choices)}"
                )
            below = info.minimum is not None and value < info.minimum
            above = info.maximum is not None and value > info.maximum
            if below or above:
                low = "" if info.minimum is None else f"at least {info.minimum:g}"
                high = "" if info.maximum is None else f"at most {info.maximum:g}"
                wanted = " and ".join(part for part in (low, high) if part)
                raise ConfigError(f"{flag_name(field.name)} {value!r} must be {wanted}")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(_Checked):
    """Which models, and in which arithmetic."""

    model: str | None = option(
        None,
        help="verifier: a local folder or a hub id (default: the shipped pair)",
        metavar="PATH",
    )
    draft_model: str | None = option(
        None,
        help="draft model; 'none' serves the verifier alone (default: the shipped draft "
        "when the shipped verifier is served, else none)",
        metavar="PATH",
        aliases=("--spec-model", "--speculative-draft-model-path"),
    )
    served_model_name: str | None = option(
        None,
        help="name by which clients know the model (default: its folder's name)",
        metavar="NAME",
    )
    dtype: str = option(
        "auto",
        help="arithmetic; auto is float32 on a CPU, the checkpoint's own type on a GPU",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    device: str = option(
        "auto",
        help="auto, cpu or cuda[:N]; auto is the first GPU if there is one; emulated:FILE takes "
        "the time that a cost table says, and computes nothing",
        metavar="DEVICE",
    )
    model_impl: str = option(
        "auto",
        help="what computes the models: pdv is our own forward pass (Llama, Mistral, Qwen2, "
        "Qwen3), transformers its own modules (slower, many architectures); auto is pdv where it "
        "can",
        choices=("auto", "pdv", "transformers"),
    )
    attention: str = option(
        "auto",
        help="what computes attention over --kv-layout paged, and the small steps between products "
        "of matrices; triton: kernels of our own, for a GPU; sdpa: PyTorch's; auto is triton on a "
        "GPU where it is installed",
        choices=("auto", "triton", "sdpa"),
    )
    cuda_graphs: str = option(
        "auto",
        help="on a GPU, replay drafts and verifications of up to 128 requests as CUDA graphs, each "
        "of them recorded when it is first needed; never: launch every kernel by itself",
        choices=("auto", "never"),
    )
    load_format: str = option(
        "auto", help="dummy fills the weights with seeded noise", choices=("auto", "dummy")
    )
    compile: str = option(
        "auto",
        help="for float32 on a CPU, compute with kernels of our own, which this machine's C++ "
        "compiler makes once, in seconds, and a cache keeps; never, or where there is no compiler: "
        "with PyTorch's",
        choices=("auto", "never"),
    )
    max_model_len: int | None = option(
        None,
        help="most tokens of prompt and output together (default: what the models allow)",
        minimum=2,
        aliases=("--context-length",),
    )
    threads: int | None = option(
        None,
        help="CPU threads of each worker's kernels, whatever the topology says (default: the "
        "cores, shared by all workers)",
        minimum=1,
    )


@dataclass(frozen=True, kw_only=True)
class CacheOptions(_Checked):
    """Memory for keys and values, of both models together."""

    kv_cache_memory: int | None = option(
        None,
        help="bytes for the KV of both models (suffixes K, M, G; default: 1G on a CPU, what "
        "--gpu-memory-utilization leaves on a GPU)",
        minimum=1,
        metavar="BYTES",
    )
    gpu_memory_utilization: float = option(
        0.9, help="share of a GPU's memory to use", minimum=0.01, maximum=1.0
    )
    block_size: int = option(
        16,
        help="tokens per block of KV accounting",
        minimum=1,
        maximum=1024,
        aliases=("--page-size",),
    )
    kv_layout: str = option(
        "auto",
        help="contiguous: one run per sequence; paged: blocks reached through a table; auto is "
        "contiguous on a CPU, paged on a GPU",
        choices=("auto", "contiguous", "paged"),
    )
    enable_prefix_caching: bool = option(
        True,
        help="keep the KV of past texts and compute no common beginning twice; off with "
        "--kv-handoff copy and handle, where the prefill worker cannot reach what is kept",
    )
    kv_handoff: str = option(
        "pool",
        help="how the KV of a prompt comes from the prefill worker to the others; pool: all map "
        "the same memory and nothing moves; copy: each has memory of its own, and KV is copied "
        "through the messages; handle: likewise, but KV is put into memory of the request's own, "
        "which the receiver opens, copies and closes",
        choices=("pool", "copy", "handle"),
    )


@dataclass(frozen=True, kw_only=True)
class SchedulingOptions(_Checked):
    """Who runs when, and how many at once."""

    max_num_seqs: int = option(
        32,
        help="most requests decoded in one batch",
        minimum=1,
        maximum=4096,
        aliases=("--max-running-requests",),
    )
    queue_factor: float = option(
        1.2,
        help="admit up to this many times --max-num-seqs requests; the rest wait in the front",
        minimum=1.0,
        maximum=100.0,
    )
    max_num_batched_tokens: int = option(
        512,
        help="most prompt tokens of one prefill chunk",
        minimum=1,
        aliases=("--chunked-prefill-size",),
    )
    prefill_priority: float = option(
        0.5,
        help="prefill's share of a cycle's token budget while requests are decoding",
        minimum=0.01,
        maximum=1.0,
    )
    streams: int = option(
        1,
        help="priorities among the streams of a GPU; 2: workers that draft or verify compute on "
        "one that goes before those of workers that only prefill, as far as the GPU runs them at "
        "the same time (under MPS)",
        minimum=1,
        maximum=2,
    )
    max_open_requests: int = option(
        1024,
        help="most requests open at once, waiting ones included; more get queue_full",
        minimum=1,
        aliases=("--max-num-queued-reqs",),
    )

    @property
    def max_admitted(self) -> int:
        """Requests that may hold a slot at once: ceil(queue_factor * max_num_seqs)."""
        return math.ceil(round(self.queue_factor * self.max_num_seqs, 6))


@dataclass(frozen=True, kw_only=True)
class SpeculationOptions(_Checked):
    """How far the draft runs ahead, and what is kept of it."""

    num_speculative_tokens: int | str = option(
        "auto",
        help="draft tokens per cycle; auto lets --draft-controller choose for each cycle; 0 "
        "decodes with the verifier alone",
        minimum=0,
        maximum=64,
        metavar="N|auto",
        aliases=("--spec-tokens", "--draft-max"),
        words=("auto",),
    )
    max_speculative_tokens: int = option(
        8, help="most draft tokens per cycle that auto chooses", minimum=1, maximum=64
    )
    draft_controller: str = option(
        "goodput",
        help="what chooses the draft length where it is auto; goodput: the one that yields most "
        "tokens per second, 0 included, by measured costs and acceptance; feedback: one longer or "
        "shorter by thresholds of acceptance, queue and latency, between 2 and 8; fixed: always 4, "
        "or --max-speculative-tokens if that is less",
        choices=("goodput", "feedback", "fixed"),
    )
    speculative_config: str | None = option(
        None,
        help='how drafts are made, as JSON; {"method": "ngram"} proposes what followed the last '
        "time that the text went as it goes now, without a second model (prompt_lookup_max, 4, "
        "and prompt_lookup_min, 1: tokens that must be the same); "
        '{"method": "draft_model", "model": PATH} is --draft-model; num_speculative_tokens is '
        "the option of that name",
        metavar="JSON",
    )
    acceptance: str = option(
        "gumbel",
        help="which draft tokens are kept; gumbel: those that the verifier draws with the same "
        "noise, so that a seed gives the same text with any draft or none; rejection: rejection "
        "sampling, which keeps more, but a sampled text then depends on the draft model and "
        "--num-speculative-tokens as well",
        choices=("gumbel", "rejection"),
    )


@dataclass(frozen=True, kw_only=True)
class HandoffOptions(_Checked):
    """How processes hand work to each other, and experiments on what that costs."""

    wait: str = option(
        "block",
        help="how workers wait for messages; block: asleep in the kernel; spin: asking again and "
        "again, which keeps a core busy; hybrid: asking for a millisecond, then asleep; what comes "
        "from the front is waited for asleep in any case",
        choices=("block", "spin", "hybrid"),
    )
    wait_interval_us: int = option(
        10,
        help="microseconds that spin and hybrid sleep before they ask again; 0 does not sleep",
        minimum=0,
        maximum=1_000_000,
    )
    draft_ahead: bool = option(
        False,
        help="a draft process goes on while its proposal is judged, as if all of it were accepted",
    )
    hybrid: bool = option(
        False,
        help="a lone request is drafted by the verifier's process, where its topology drafts in "
        "another one; not with --draft-ahead or KV of each process's own",
    )
    groups: int = option(
        1,
        help="groups into which the batch is divided; with 2, one is drafted while the other is "
        "verified, and each reads the weights for itself",
        minimum=1,
        maximum=2,
    )
    inject_delay: str = option(
        "",
        help="an experiment: messages of these edges arrive so many microseconds later, e.g. "
        "'draft>verify=500,verify>draft=500'",
        metavar="EDGE=MICROSECONDS,…",
    )
    exclusive_device: bool = option(
        False,
        help="an experiment: the workers of a CPU use all its cores, but only one step at a time "
        "(as a GPU slices its time)",
    )


@dataclass(frozen=True, kw_only=True)
class ServerOptions(_Checked):
    """Where clients connect, and what the server allows them."""

    host: str = option(
        "127.0.0.1",
        help="address to listen on, or a name of it; one that other machines can reach needs "
        "--token-file or --insecure",
        metavar="ADDRESS",
    )
    port: int = option(
        5555, help="TCP port for clients; 0 picks a free one", minimum=0, maximum=65535
    )
    token_file: str | None = option(
        None,
        help="file with a token of at least 16 characters, readable by its owner only; clients "
        "must send the token before anything else",
        metavar="PATH",
    )
    insecure: bool = option(
        False, help="serve other machines without a token: anyone who can connect may use it"
    )
    metrics_port: int | None = option(
        None,
        help="HTTP port on which a process of its own answers Prometheus at /metrics; 0 picks a "
        "free one (default: no such process)",
        minimum=0,
        maximum=65535,
    )
    metrics_host: str = option(
        "127.0.0.1",
        help="address of --metrics-port; one that other machines can reach needs --insecure, since "
        "whoever can connect may read the metrics",
        metavar="ADDRESS",
    )
    goodput_ttft_ms: float = option(
        2000.0,
        help="milliseconds to the first token within which a request can count as goodput",
        minimum=0.0,
    )
    goodput_tpot_ms: float = option(
        100.0,
        help="milliseconds per output token after the first within which a request can count as "
        "goodput",
        minimum=0.0,
    )
    max_message_bytes: int = option(
        4 * 1024 * 1024,
        help="largest message that a client may send",
        minimum=1024,
        metavar="BYTES",
    )
    shutdown_timeout: float = option(
        30.0, help="seconds that a drain may take before it becomes an abort", minimum=0.0
    )
    max_restarts: int = option(
        10,
        help="how often a worker that died is started again within --restart-window; one death "
        "more ends the server",
        minimum=0,
        maximum=1_000_000,
    )
    restart_window: float = option(600.0, help="seconds in which restarts are counted", minimum=1.0)
    lane_timeout: float = option(
        10.0,
        help="seconds without a sign of life within which a process that has started is killed, "
        "but not before three quarters of them; it is then a death like any other; a worker "
        "answers between two steps, and one that computes meanwhile has twelve times as long; 0 "
        "waits for ever",
        minimum=0.0,
    )
    log_level: str = option(
        "warning",
        help="least severe log record that is written to stderr",
        choices=("debug", "info", "warning", "error"),
    )
    log_requests: bool = option(
        False,
        help="log each accepted request with its parameters and its prompt, at any --log-level; "
        "without it no prompt is ever logged",
    )
    trace: str | None = option(
        None,
        help="when the server ends, write what its processes ran and sent, the last minutes of "
        "it, to this file, which ui.perfetto.dev shows",
        metavar="FILE",
    )
    check_invariants: bool = option(
        False, help="check KV lengths and block accounts after every cycle (for tests; slow)"
    )


@dataclass(frozen=True, kw_only=True)
class HttpOptions(_Checked):
    """The OpenAI-compatible gateway, one more process."""

    http_port: int | None = option(
        None,
        help="TCP port of an HTTP gateway with the OpenAI API; 0 picks a free one (default: no "
        "gateway)",
        minimum=0,
        maximum=65535,
    )
    http_host: str = option(
        "127.0.0.1",
        help="address that the gateway listens on, or a name of it; one that other machines can "
        "reach needs --api-key-file or --insecure",
        metavar="ADDRESS",
    )
    api_key_file: str | None = option(
        None,
        help="file with a key of at least 16 characters, readable by its owner only; HTTP clients "
        "must send it as a bearer token",
        metavar="PATH",
    )
    http_max_body_bytes: int = option(
        4 * 1024 * 1024, help="largest body of an HTTP request", minimum=1024, metavar="BYTES"
    )
    http_body_timeout: float = option(
        30.0, help="seconds in which the body of an HTTP request must arrive", minimum=0.1
    )


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Everything that a server's processes need to know, fixed before the first of them starts.

    ``topology`` is the name of a row. ``table`` is the row itself, once the launcher has prepared
    it, or when it comes from ``--topology-file``.
    """

    topology: str = "unified"
    table: Topology | None = None
    model: ModelOptions = dataclasses.field(default_factory=ModelOptions)
    cache: CacheOptions = dataclasses.field(default_factory=CacheOptions)
    scheduling: SchedulingOptions = dataclasses.field(default_factory=SchedulingOptions)
    speculation: SpeculationOptions = dataclasses.field(default_factory=SpeculationOptions)
    handoff: HandoffOptions = dataclasses.field(default_factory=HandoffOptions)
    server: ServerOptions = dataclasses.field(default_factory=ServerOptions)
    http: HttpOptions = dataclasses.field(default_factory=HttpOptions)

    def to_json(self) -> str:
        """The configuration as JSON text; :meth:`from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> EngineConfig:
        """The inverse of :meth:`to_json`. Raises ConfigError for unknown keys or bad values."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EngineConfig:
        """From nested mappings, as ``dataclasses.asdict`` gives them."""
        types = get_type_hints(cls)
        parts: dict[str, Any] = {}
        for key, value in values.items():
            if key not in types:
                raise ConfigError(f"unknown configuration key {key!r}")
            if key == "table":
                parts[key] = None if value is None else Topology.from_dict(value)
            else:
                parts[key] = value if key == "topology" else _build(types[key], key, value)
        return cls(**parts)

    @classmethod
    def from_options(cls, topology: str = "unified", **options: Any) -> EngineConfig:
        """From flat option names, e.g. ``from_options(max_num_seqs=8, port=0)``.

        Raises ConfigError for a name that no option has.
        """
        groups = option_groups()
        nested: dict[str, dict[str, Any]] = {name: {} for name in groups}
        owner = {
            field.name: name
            for name, group in groups.items()
            for field in dataclasses.fields(group)
        }
        for key, value in options.items():
            if key not in owner:
                raise ConfigError(f"unknown option {key!r}")
            nested[owner[key]][key] = value
        return cls.from_dict({"topology": topology, **nested})

    @property
    def fingerprint(self) -> str:
        """A hash of the whole configuration; processes compare it at start-up."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def option_groups() -> dict[str, type[Any]]:
    """The option groups of EngineConfig in the order of their declaration: name -> dataclass."""
    hints = get_type_hints(EngineConfig)
    return {
        field.name: hints[field.name]
        for field in dataclasses.fields(EngineConfig)
        if dataclasses.is_dataclass(hints[field.name])
    }


def _build(group: type[Any], name: str, values: Mapping[str, Any]) -> Any:
    known = {field.name for field in dataclasses.fields(group)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"unknown configuration key {unknown[0]!r} in {name!r}")
    return group(**values)
