"""``bench.recovery``: whom it kills, what it takes for the end of a pause, and a short run."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from bench.recovery import Stream, kinds, main
from pdv_mp.topology import FRONT, topology


@pytest.mark.parametrize("name", ["unified", "baseline", "pd", "pdv"])
def test_every_process_but_the_front_is_of_one_kind(name: str) -> None:
    row = topology(name)
    listed = [process for processes in kinds(row).values() for process in processes]
    assert sorted(listed) == sorted(set(row.process_names) - {FRONT})
    assert len(kinds(row)) == len(row.workers) + bool(row.has_pools) + bool(row.tokenizers)


def test_what_was_still_in_the_sockets_does_not_count_as_going_on() -> None:
    assert Stream(times=[1.0, 2.0, 3.01, 6.0, 6.5]).resumed(3.0) == 3.0
    assert Stream(times=[1.0, 2.0]).resumed(3.0) is None
    assert Stream(times=[5.0]).resumed(3.0) == 2.0


@pytest.mark.slow
def test_a_short_run(run_place: object) -> None:
    options = ["--topology", "pd", "--kills", "1", "--requests", "2", "--tokens", "24"]
    done = CliRunner().invoke(main, options, catch_exceptions=False)
    assert done.exit_code == 0
    rows = re.findall(r"^\| pd \| (\w+) \| (.*) \|$", done.stdout, re.MULTILINE)
    assert {kind for kind, _ in rows} == set(kinds(topology("pd")))
    seconds = dict(rows)
    for kind in ("prefill", "decode", "pools"):
        first, last, serves = (float(cell.split(" ")[0]) for cell in seconds[kind].split(" | "))
        assert 0 < first <= last
        assert serves > 0
