"""``pdv-bench gateway``: what the HTTP gateway costs beside the ZeroMQ protocol."""

from __future__ import annotations

import click

from bench.gateway.measuring import AddedTime, EventCost, added_time, event_cost
from bench.load.errors import LoadError
from bench.servers import SAME_WORK
from pdv_mp import LLM


@click.command()
@click.option("--topology", default="unified", show_default=True)
@click.option("--streams", default=64, show_default=True, type=click.IntRange(1, 1000))
@click.option("--tokens", default=256, show_default=True, type=click.IntRange(2, 1024))
@click.option("--rounds", default=12, show_default=True, type=click.IntRange(2))
@click.option("--pairs", default=400, show_default=True, type=click.IntRange(10))
@click.option("--model", default=None, help="verifier (default: the shipped pair)")
@click.option("--draft-model", default=None)
def gateway(
    topology: str,
    streams: int,
    tokens: int,
    rounds: int,
    pairs: int,
    model: str | None,
    draft_model: str | None,
) -> None:
    """Measure what the HTTP gateway costs, and print a table.

    CPU per event: of the gateway's process while so many streams run at once, by /proc. Added time:
    one request at a time, over HTTP and over ZeroMQ by turns, the same prompts; the prefix cache is
    off. Both with 95 % bootstrap intervals, of the rounds and of the pairs.
    """
    try:
        with LLM(model, draft_model, topology=topology, http_port=0, **SAME_WORK) as llm:
            url = llm.http
            if url is None:
                raise LoadError("the server has no gateway")
            cost = event_cost(llm, url, streams, tokens, rounds)
            added = added_time(llm, url, pairs, tokens=4)
    except LoadError as error:
        raise click.ClickException(str(error)) from error
    click.echo(table(topology, cost, added))


def table(topology: str, cost: EventCost, added: AddedTime) -> str:
    """The results as Markdown."""
    rows = [
        f"| what, `{topology}` | median (95 % interval) | of |",
        "| --- | --- | --- |",
        f"| CPU of the gateway per event at {cost.streams} streams, µs | {cost.microseconds} | "
        f"{cost.rounds} rounds, {cost.events} events of {cost.tokens_per_event:.2f} tokens |",
        f"| time to first token over HTTP, ms | {added.http} | {added.pairs} requests |",
        f"| time to first token over ZeroMQ, ms | {added.zmq} | {added.pairs} requests |",
        f"| added by the gateway, ms | {added.added} | {added.pairs} pairs |",
    ]
    return "\n".join(rows)
