"""``make demo``: a server answers three prompts with and without speculation, and says how it went.

The prompts are the beginnings of functions from held-out files, which the shipped models have not
seen. Both passes are greedy and give the same tokens; the demo says so after comparing them.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import click

from pdv_mp import assets
from pdv_mp.client.client import Client, Completion
from pdv_mp.client.llm import LLM, LaunchError
from pdv_mp.timeline import ORCHESTRATION

PROMPTS = (
    ("textwrap.py", "def dedent(text):"),
    ("heapq.py", "def heappush(heap, item):"),
    ("fractions.py", "def limit_denominator(self, max_denominator=1000000):"),
)
CONTEXT_CHARACTERS = 600

GROUPS = (
    ("prefill", ("prefill.compute",)),
    ("draft", ("draft.compute",)),
    ("verify", ("verify.compute",)),
    ("waiting", (".queue", ".busy")),
    ("handing over", tuple(f".{part}" for part in ORCHESTRATION)),
)
"""Columns of the second table, and the ends of the state names that belong to them."""


@dataclass(frozen=True)
class Answer:
    """One completion and the wall time that its client saw."""

    completion: Completion
    seconds: float


def held_out_prompts() -> list[tuple[str, str]]:
    """Three functions' heads with what stands before them in their held-out file."""
    files = dict(assets.heldout_files())
    prompts = []
    for name, head in PROMPTS:
        end = files[name].index(head) + len(head)
        start = files[name].rfind("\n", 0, max(0, end - CONTEXT_CHARACTERS)) + 1
        prompts.append((f"{name}: {head}", files[name][start:end]))
    return prompts


def answer(client: Client, prompt: str, tokens: int, speculate: bool, show: bool) -> Answer:
    """Serve one prompt, streaming its text to the terminal if ``show``."""
    started = time.perf_counter()
    stream = client.generate(
        prompt, max_tokens=tokens, ignore_eos=True, speculate=speculate, timeline=True
    )
    for chunk in stream:
        if show:
            print(chunk.text, end="", flush=True)
    if show:
        print("\n")
    return Answer(stream.result(), time.perf_counter() - started)


def shares(answers: list[Answer]) -> list[float]:
    """Share of the end-to-end time in each of GROUPS, over all answers."""
    timelines = [a.completion.timeline for a in answers if a.completion.timeline is not None]
    total = sum(timeline["e2e_ns"] for timeline in timelines)
    return [
        sum(
            entry["ns"]
            for timeline in timelines
            for name, entry in timeline["states"].items()
            if name.endswith(ends)
        )
        / total
        for _, ends in GROUPS
    ]


def report(passes: dict[str, list[Answer]]) -> str:
    """Both tables, as text."""
    lines = [f"{'':14}{'tokens/s':>10}{'first token':>13}{'acceptance':>12}{'tokens/cycle':>14}"]
    for name, answers in passes.items():
        made = sum(len(a.completion.ids) for a in answers)
        seconds = sum(a.seconds for a in answers)
        first = sum(float(a.completion.timing["ttft_ms"] or 0) for a in answers) / len(answers)
        drafted, accepted, cycles = (
            sum(a.completion.speculation[key] for a in answers)
            for key in ("drafted", "accepted", "cycles")
        )
        acceptance = f"{accepted / drafted:.2f}" if drafted else "–"
        per_cycle = f"{1 + accepted / cycles:.2f}" if cycles else "1.00"
        lines.append(
            f"{name:14}{made / seconds:10.0f}{first:10.1f} ms{acceptance:>12}{per_cycle:>14}"
        )
    lines += ["", f"{'time goes to':14}" + "".join(f"{group:>14}" for group, _ in GROUPS)]
    for name, answers in passes.items():
        lines.append(f"{name:14}" + "".join(f"{share:14.1%}" for share in shares(answers)))
    return "\n".join(lines)


@click.command(help="Starts a server, answers three prompts with and without speculation, stops.")
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(1, 1024))
def main(tokens: int) -> None:
    # Both passes have the same prompts, so none may keep what it computed for the other.
    print("$ pdv-launch --topology unified --no-enable-prefix-caching", flush=True)
    started = time.perf_counter()
    try:
        llm = LLM(topology="unified", enable_prefix_caching=False)
    except LaunchError as error:
        raise click.ClickException(str(error)) from error
    with llm, Client(llm.ipc, token=llm.token) as client:
        processes = ", ".join(f"{name} {pid}" for name, pid in llm.pids.items())
        print(f"ready in {time.perf_counter() - started:.1f} s: {processes}\n")
        prompts = held_out_prompts()
        answer(client, prompts[0][1], 8, speculate=True, show=False)
        answer(client, prompts[0][1], 8, speculate=False, show=False)
        passes: dict[str, list[Answer]] = {"speculating": [], "plain": []}
        for title, prompt in prompts:
            print(f"--- {title}")
            print(prompt[prompt.rfind("\n") + 1 :], end="")
            passes["speculating"].append(answer(client, prompt, tokens, speculate=True, show=True))
        for _, prompt in prompts:
            passes["plain"].append(answer(client, prompt, tokens, speculate=False, show=False))
    print(report(passes))
    pairs = zip(passes["speculating"], passes["plain"], strict=True)
    same = sum(one.completion.ids == other.completion.ids for one, other in pairs)
    print(f"\n{same} of {len(prompts)} outputs are the same tokens with and without speculation.")
    print("The server has stopped.")
    if same < len(prompts):
        sys.exit(1)


if __name__ == "__main__":
    main()
