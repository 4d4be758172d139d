"""The command ``pdv-client``: a prompt to a running server, its completion to standard output."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
from collections.abc import Sequence
from typing import Any

import click

from launcher.entry import run_command
from launcher.ranges import FiniteRange
from pdv_mp.client.client import (
    DEFAULT_ENDPOINT,
    Client,
    Completion,
    ServerError,
    ServerUnreachable,
    Stream,
    TokenLogprob,
)
from pdv_mp.client.client_options import DEFAULT_CONNECT_TIMEOUT, DEFAULT_TIMEOUT, OnMessage
from pdv_mp.config import ConfigError
from pdv_mp.sampling_params import ParameterError, SamplingParams
from pdv_mp.timeline import orchestration_share
from pdv_mp.token_file import read_token, token_path
from pdv_mp.wire.protocol import ProtocolError

PROGRAM = "pdv-client"

MISTAKES = ("bad_request", "too_large", "context_length_exceeded", "unauthenticated")
"""Codes of errors that the user can mend."""

CANCEL_SECONDS = 1.0
"""How long Ctrl-C waits for the end of the request."""


@click.command()
@click.argument("prompt", required=False)
@click.option(
    "--endpoint",
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
@click.option("--max-tokens", type=int, help="most tokens to generate (default: the server's)")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy")
@click.option("--top-k", type=int, default=0, show_default=True, help="0 means all")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--min-p", type=float, default=0.0, show_default=True)
@click.option("--seed", type=int, help="of the sampling noise (default: drawn)")
@click.option("--stop", multiple=True, help="text that ends the output; may be repeated")
@click.option("--no-speculate", is_flag=True, help="decode with the verifier alone")
@click.option("--ignore-eos", is_flag=True, help="go on after an end-of-text token")
@click.option(
    "--logprobs",
    type=int,
    help="print each token's log-probability after the text, with that many alternatives (0 to 20)",
)
@click.option("--timeline", is_flag=True, help="show where the request's time went")
@click.option("--json", "raw", is_flag=True, help="print the server's messages, one a line")
@click.option("--verbose", is_flag=True, help="print a summary to standard error")
@click.option(
    "--timeout",
    type=FiniteRange(min=1.0),
    default=DEFAULT_TIMEOUT,
    show_default=True,
    help="seconds without any sign of the server after which to give up; one that was never "
    f"heard of is given up after {DEFAULT_CONNECT_TIMEOUT:g}",
)
def command(
    prompt: str | None,
    endpoint: str,
    token_file: str | None,
    max_tokens: int | None,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int | None,
    stop: tuple[str, ...],
    no_speculate: bool,
    ignore_eos: bool,
    logprobs: int | None,
    timeline: bool,
    raw: bool,
    verbose: bool,
    timeout: float,
) -> None:
    """Stream the completion of PROMPT, or of standard input (UTF-8), from a running server.

    Exit status: 0 done, 1 the server could not be reached or failed, 2 a mistake in the request,
    130 interrupted: Ctrl-C cancels the request and waits at most a second for its end.
    """
    if not endpoint.startswith(("tcp://", "ipc://")):
        raise click.UsageError(f"--endpoint {endpoint!r} must begin with tcp:// or ipc://")
    token = None if token_file is None else _read_token(token_file)
    if prompt is None:
        prompt = _standard_input()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack some characters
    try:
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            stop=stop,
            ignore_eos=ignore_eos,
            speculate=not no_speculate,
            logprobs=logprobs,
        )
        with _connect(endpoint, timeout, _print_raw if raw else None, token) as client:
            completion = _stream(client, prompt, params, timeline, quiet=raw)
    except ParameterError as error:
        raise click.UsageError(str(error)) from error
    except ServerError as error:
        mistake = error.code in MISTAKES
        kind = click.UsageError if mistake else click.ClickException
        raise kind(error.message) from error
    except (ServerUnreachable, ProtocolError) as error:
        raise click.ClickException(str(error)) from error
    if not raw and (verbose or timeline or sys.stderr.isatty()):
        _print_summary(completion)
    if completion.finish == "abort":
        raise click.ClickException("the request was aborted")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``pdv-client``; returns the exit status."""
    return run_command(command, PROGRAM, arguments)


def _standard_input() -> str:
    if sys.stdin is None:
        raise click.UsageError("give a PROMPT, or a text on standard input")
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError(
            f"standard input is not UTF-8 text: byte {error.start} cannot be read"
        ) from error


def _read_token(file: str) -> str:
    try:
        return read_token(token_path(file))
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _connect(
    endpoint: str, timeout: float, on_message: OnMessage | None, token: str | None
) -> Client:
    try:
        return Client(endpoint, timeout=timeout, on_message=on_message, token=token)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _stream(
    client: Client, prompt: str, params: SamplingParams, timeline: bool, quiet: bool
) -> Completion:
    with client.generate(prompt, params, timeline=timeline) as stream:
        try:
            for chunk in stream:
                if not quiet:
                    sys.stdout.write(chunk.text)
                    sys.stdout.flush()
        except KeyboardInterrupt:
            _end(stream)
            raise
        completion = stream.result()
    if not quiet:
        sys.stdout.write("\n")
        _print_logprobs(client, completion.logprobs or [])
        sys.stdout.flush()
    return completion


def _print_logprobs(client: Client, logprobs: list[TokenLogprob]) -> None:
    """One line per token: its log-probability and text, then the alternatives'."""
    texts: dict[int, str] = {}

    def shown(id: int, logprob: float) -> str:
        if id not in texts:
            texts[id] = json.dumps(client.detokenize([id]) or f"<{id}>", ensure_ascii=False)
        return f"{logprob:9.4f} {texts[id]}"

    for entry in logprobs:
        pairs = [(entry.id, entry.logprob), *entry.top]
        sys.stdout.write("  ".join(f"{shown(*pair):<24}" for pair in pairs).rstrip() + "\n")


def _end(stream: Stream) -> None:
    """Cancels a request and waits a little for its end, or until the next interrupt."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, CANCEL_SECONDS)
    with contextlib.suppress(KeyboardInterrupt, ServerError, ServerUnreachable, ProtocolError):
        stream.cancel()
        stream.result()
    signal.setitimer(signal.ITIMER_REAL, 0)


def _print_raw(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _print_summary(completion: Completion) -> None:
    timing, speculation = completion.timing, completion.speculation
    tokens = len(completion.ids)
    parts = [f"{tokens} tokens", f"finish {completion.finish}", f"seed {completion.seed}"]
    ttft, e2e = timing.get("ttft_ms"), timing.get("e2e_ms")
    if ttft is not None and e2e is not None:
        parts.append(f"first token after {ttft:.0f} ms")
        if tokens > 1 and e2e > ttft:
            parts.append(f"then {1000 * (tokens - 1) / (e2e - ttft):.1f} tokens/s")
    if speculation.get("drafted"):
        rate = speculation["accepted"] / speculation["drafted"]
        length = 1 + speculation["accepted"] / speculation["cycles"]
        parts.append(f"accepted {rate:.0%} of the draft, {length:.2f} tokens per cycle")
    click.echo("[" + ", ".join(parts) + "]", err=True)
    if completion.timeline is not None:
        _print_timeline(completion.timeline)


def _print_timeline(timeline: dict[str, Any]) -> None:
    total = timeline["e2e_ns"] or 1
    states = sorted(timeline["states"].items(), key=lambda item: -item[1]["ns"])
    for name, state in states:
        click.echo(
            f"  {name:<24} {state['n']:>6} x {state['ns'] / 1e6:>10.3f} ms "
            f"{state['ns'] / total:>7.1%}",
            err=True,
        )
    click.echo(
        f"  {'end to end':<24} {'':>6}   {total / 1e6:>10.3f} ms, orchestration "
        f"{orchestration_share(timeline):.1%}",
        err=True,
    )
