"""``pdv-launch --describe-topology``."""

from __future__ import annotations

from pathlib import Path

import pytest
from server_process import run_launch

from launcher.topology_drawing import draw
from pdv_mp.topology import PDV, ROWS, Topology

PDV_DRAWING = """\
pdv: 1 replica of 3 workers, 6 processes and the launcher

clients
└─ client, tcp ── front              detokenizes, keeps what is open
   ├─ tokenizer-0.N ── tokenizer-0   tokenizes
   └─ engine-0.N ── verify-0         verify; scheduler; 2 threads
      ├─ prefill-0.N ── prefill-0    prefill; 2 threads
      └─ draft-0.N ── draft-0        draft; 2 threads

pools                                weights of both models, block tables, KV
└─ pools ── every worker             maps what it needs and computes there

socket         type             bound by  connected by   carries
client, tcp    ROUTER – DEALER  front     clients        the client protocol
tokenizer-0.N  PAIR             front     tokenizer-0    texts; ids
engine-0.N     PAIR             front     verify-0       open, close; tokens
prefill-0.N    PAIR             verify-0  prefill-0      orders; results
draft-0.N      PAIR             verify-0  draft-0        orders; results
pools          ROUTER – DEALER  pools     every worker   where weights and KV are
control        ROUTER – DEALER  launcher  every process  ready, stop, restarts, pings

All but tcp are files in the run directory. N is the generation of the process below: how
often it was started again.
"""


def test_the_drawing_of_a_row_that_cannot_be_served_yet_or_can() -> None:
    done = run_launch("--describe-topology", "pdv", "--threads", "2")
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout == PDV_DRAWING


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_every_process_and_stage_is_in_it(row: Topology) -> None:
    text = draw(row)
    for name in row.process_names:
        assert f" {name} " in text.replace("\n", " ")
    for worker in row.workers:
        assert ", then ".join(worker.stages) in text
    assert ("weights and KV of both models belong to" in text) is not row.has_pools
    assert max(len(line) for line in text.splitlines()) <= 120


def test_replicas_are_told_apart() -> None:
    row = Topology("two", PDV.workers, replicas=2)
    lines = draw(row).splitlines()
    assert lines[4:10] == [
        "   ├─ engine-0.N ── verify-0        verify; scheduler",
        "   │  ├─ prefill-0.N ── prefill-0   prefill",
        "   │  └─ draft-0.N ── draft-0       draft",
        "   └─ engine-1.N ── verify-1        verify; scheduler",
        "      ├─ prefill-1.N ── prefill-1   prefill",
        "      └─ draft-1.N ── draft-1       draft",
    ]
    assert "KV in 2 disjoint parts" in draw(row)


def test_without_a_name_it_is_the_one_that_would_be_served(tmp_path: Path) -> None:
    done = run_launch("--describe-topology", "--threads", "5")
    assert done.code == 0, done.stderr
    assert done.stdout.startswith("unified: 1 replica of 1 worker, 2 processes and the launcher\n")
    assert "5 threads" in done.stdout
    file = tmp_path / "mine.yaml"
    file.write_text(
        "workers: [{name: all, stages: [verify, draft, prefill], max_batch: 3, device: cpu}]"
    )
    done = run_launch("--topology-file", str(file), "--describe-topology", "--threads", "1")
    assert done.code == 0, done.stderr
    assert "verify, then draft, then prefill; scheduler; 1 thread; batch at most 3; cpu" in (
        done.stdout
    )


@pytest.mark.parametrize(
    "options",
    [
        ("--draft-model", "none"),
        ("--speculative-config", '{"method": "ngram"}'),
        ("--model", "some/folder"),
    ],
)
def test_without_a_draft_model_nobody_only_drafts(options: tuple[str, ...]) -> None:
    done = run_launch("--topology", "pdv", "--describe-topology", *options)
    assert done.code == 0, done.stderr
    assert done.stdout.startswith("pdv: 1 replica of 2 workers, 5 processes and the launcher\n")
    assert "draft-0" not in done.stdout


def test_a_name_with_a_typo_keeps_its_hint() -> None:
    done = run_launch("--describe-topology", "unifed")
    assert (done.code, done.stdout) == (2, "")
    (message,) = done.messages
    assert message.endswith("; did you mean 'unified'?")
