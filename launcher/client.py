"""``pdv-client``: a prompt to a running server, its completion to standard output."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NoReturn

import click

from pdv_mp.client import DEFAULT_ENDPOINT, Client, Completion, ServerError, ServerUnreachable
from pdv_mp.sampling_params import ParameterError, SamplingParams
from pdv_mp.timeline import orchestration_share
from pdv_mp.wire.protocol import ProtocolError

EXIT_FAILED = 1
EXIT_USAGE = 2


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"pdv-client: {message}", err=True)
    sys.exit(code)


@click.command()
@click.argument("prompt", required=False)
@click.option(
    "--endpoint",
    default=DEFAULT_ENDPOINT,
    show_default=True,
    help="the server's tcp:// or ipc:// endpoint",
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
@click.option("--timeline", is_flag=True, help="show where the request's time went")
@click.option("--json", "raw", is_flag=True, help="print the server's messages, one a line")
@click.option("--verbose", is_flag=True, help="print a summary to standard error")
@click.option(
    "--timeout",
    type=click.FloatRange(min=1.0),
    default=5.0,
    show_default=True,
    help="seconds without any sign of the server after which to give up",
)
def main(
    prompt: str | None,
    endpoint: str,
    max_tokens: int | None,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int | None,
    stop: tuple[str, ...],
    no_speculate: bool,
    ignore_eos: bool,
    timeline: bool,
    raw: bool,
    verbose: bool,
    timeout: float,
) -> None:
    """Stream the completion of PROMPT, or of standard input, from a running server.

    Exit codes: 0 done, 1 the server could not be reached or failed, 2 a mistake in the request.
    Ctrl-C cancels the request.
    """
    if not endpoint.startswith(("tcp://", "ipc://")):
        _fail(f"--endpoint {endpoint!r} must begin with tcp:// or ipc://", EXIT_USAGE)
    if prompt is None:
        prompt = sys.stdin.read()
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
        )
    except ParameterError as error:
        _fail(str(error), EXIT_USAGE)
    try:
        with Client(endpoint, timeout=timeout, on_message=_print_raw if raw else None) as client:
            completion = _stream(client, prompt, params, timeline, quiet=raw)
    except ServerError as error:
        mistake = error.code in ("bad_request", "too_large", "context_length_exceeded")
        _fail(error.message, EXIT_USAGE if mistake else EXIT_FAILED)
    except (ServerUnreachable, ProtocolError) as error:
        _fail(str(error), EXIT_FAILED)
    except BrokenPipeError:  # the reader of our output has gone, and so may we
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
    if not raw and (verbose or timeline or sys.stderr.isatty()):
        _print_summary(completion)
    if completion.finish == "abort":
        _fail("the request was aborted", EXIT_FAILED)


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
            stream.cancel()
        completion = stream.result()
    if not quiet:
        sys.stdout.write("\n")
        sys.stdout.flush()
    return completion


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


if __name__ == "__main__":
    main()
