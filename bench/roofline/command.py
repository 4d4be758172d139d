"""``pdv-bench roofline``."""

from __future__ import annotations

import os
from dataclasses import dataclass

import click

from bench.arguments import whole_numbers
from bench.inflate.errors import InflateError
from bench.inflate.shapes import SHAPES, find_shape
from bench.roofline.bounds import (
    CellWork,
    best_length,
    cell_bound,
    decode_bound,
    prefill_seconds,
    step_seconds,
)
from bench.roofline.machine import measure
from bench.roofline.models import ModelCost
from bench.roofline.rates import DEVICES, Rates
from launcher.ranges import FiniteRange
from pdv_mp.model.architecture import ModelConfig

CPU = "cpu"
DRAFT = 4
"""Draft tokens of the verify steps that are profiled."""

PROFILE_ROUNDS, ACCOUNT_ROUNDS = 20, 4

NAMES = f"{', '.join(SHAPES)}, or a folder with a config.json"
HEADS = (
    *("C", "prefill, ms", "plain step, ms", "draft step, ms", "best draft length"),
    *("verify step, ms", "decode, tokens/s", "plain, tokens/s", "with prefill, tokens/s"),
)


@click.command(context_settings={"show_default": True})
@click.option("--model", default="llama-2-7b", metavar="SHAPE", help=f"Verifier: {NAMES}.")
@click.option("--draft-model", default="tinyllama-1.1b", metavar="SHAPE", help="Draft, likewise.")
@click.option(
    "--device",
    default=CPU,
    type=click.Choice([CPU, *DEVICES]),
    help="cpu is measured, the others are from a table.",
)
@click.option("--threads", type=click.IntRange(1), help="Of the CPU.  [default: all cores]")
@click.option("--acceptance", default=0.7, type=FiniteRange(0, 1))
@click.option("--prompt-tokens", default=512, type=click.IntRange(1))
@click.option("--output-tokens", default=128, type=click.IntRange(2))
@click.option("--concurrency", default="1,8,32,128", callback=whole_numbers, metavar="LIST")
@click.option(
    "--bytes-per-number",
    type=click.Choice(["1", "2", "4"]),
    help="Of weights and KV cache.  [default: 4 on cpu, else 2]",
)
@click.option(
    "--profile",
    is_flag=True,
    help="Time the verifier's steps on this CPU instead, and say where the time goes.",
)
@click.option(
    "--account",
    is_flag=True,
    help="Ask a server of the pair, both folders with weights, for requests instead, and say what "
    "lies between their time and the bound.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    help="Of --profile and --account.  [default: 20 and 4]",
)
def roofline(
    model: str,
    draft_model: str,
    device: str,
    threads: int | None,
    acceptance: float,
    prompt_tokens: int,
    output_tokens: int,
    concurrency: list[int],
    bytes_per_number: str | None,
    profile: bool,
    account: bool,
    rounds: int | None,
) -> None:
    """The least time that a device needs for a model pair's work, and so the most tokens/s.

    From the bytes and operations of each step alone: bench/roofline/bounds.py has the formula.
    """
    size = int(bytes_per_number or (4 if device == CPU else 2))
    try:
        verifier, draft = (
            ModelCost.of(find_shape(name).parse(), size) for name in (model, draft_model)
        )
    except InflateError as error:
        raise click.UsageError(str(error)) from None
    if (profile or account) and (device != CPU or size != 4):
        raise click.UsageError("--profile and --account time float32 on the CPU at hand")
    if profile and account:
        raise click.UsageError("--profile and --account do not go together")
    if profile:
        cores = threads or len(os.sched_getaffinity(0))
        shape = find_shape(model).parse()
        _profile(shape, cores, concurrency, prompt_tokens, rounds or PROFILE_ROUNDS)
        return
    rates = _rates(device, threads)
    click.echo(f"{rates.name}: {rates.bandwidth / 1e9:,.1f} GB/s, {rates.flops / 1e9:,.0f} GFLOP/s")
    if account:
        folders = {"model": model, "draft_model": draft_model}
        load = _Load(concurrency, prompt_tokens, output_tokens, rounds or ACCOUNT_ROUNDS)
        _account(folders, rates, (verifier, draft), threads, load)
        return
    click.echo(f"| {' | '.join(HEADS)} |\n|{' --- |' * len(HEADS)}")
    for batch in concurrency:
        plain = CellWork(batch, prompt_tokens, output_tokens)
        work = best_length(rates, verifier, draft, plain, acceptance)
        context = prompt_tokens + output_tokens / 2
        cells = (
            str(batch),
            _ms(prefill_seconds(rates, verifier, batch, prompt_tokens)),
            _ms(step_seconds(rates, verifier, batch, 1, context)),
            _ms(step_seconds(rates, draft, batch, 1, context)),
            f"{work.length:g}",
            _ms(step_seconds(rates, verifier, batch, work.length + 1, context)),
            f"{decode_bound(rates, verifier, draft, work):,.0f}",
            f"{decode_bound(rates, verifier, None, plain):,.0f}",
            f"{cell_bound(rates, verifier, draft, work):,.0f}",
        )
        click.echo(f"| {' | '.join(cells)} |")


def _profile(
    config: ModelConfig, threads: int, concurrency: list[int], prompt: int, rounds: int
) -> None:
    # Imported where it is needed: torch takes seconds.
    from bench.roofline.machine import Machine
    from bench.roofline.profile import Profiler, profile, steps, table
    from pdv_mp.model.native.library import NativeError

    machine = Machine(threads)
    machine.measure()  # from now on the quicker products alone
    try:
        profiler = Profiler(config, max(concurrency), prompt + DRAFT + 1)
    except NativeError as error:
        raise click.ClickException(str(error)) from None
    planned = list(steps(concurrency, prompt, DRAFT))
    click.echo(table(profile(profiler, planned, machine, rounds)))


@dataclass(frozen=True, slots=True)
class _Load:
    """What a server is asked for."""

    concurrency: list[int]
    prompt: int
    output: int
    rounds: int


def _account(
    folders: dict[str, str],
    rates: Rates,
    pair: tuple[ModelCost, ModelCost],
    threads: int | None,
    load: _Load,
) -> None:
    from bench.load.held_out import HeldOut, tokenizer_of
    from bench.roofline.account import Accountant, AccountError, account_table, measure_account
    from pdv_mp import LLM
    from pdv_mp.client.client import ServerError, ServerUnreachable
    from pdv_mp.client.llm import LaunchError

    accountant, windows = Accountant(rates, *pair), HeldOut(tokenizer_of(None)).windows(load.prompt)
    accounts, taken = [], 0
    cores = threads or len(os.sched_getaffinity(0))
    try:
        with LLM(**folders, device=CPU, threads=cores, enable_prefix_caching=False) as server:
            for turn in range(load.rounds + 1):
                for clients in load.concurrency:
                    prompts = [windows[(taken + place) % len(windows)] for place in range(clients)]
                    taken += clients
                    found = measure_account(server, accountant, prompts, load.output)
                    if turn:  # the first round warms up
                        accounts.append(found)
    except (LaunchError, AccountError, ServerError, ServerUnreachable) as error:
        raise click.ClickException(str(error)) from None
    click.echo(account_table(sorted(accounts, key=lambda account: account.concurrency)))


def _rates(device: str, threads: int | None) -> Rates:
    if device != CPU:
        return DEVICES[device]
    found = measure(threads or len(os.sched_getaffinity(0)))
    if found is None:
        raise click.ClickException("this machine's rates cannot be measured")
    return found.rates


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g}"
