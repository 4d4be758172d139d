"""``bench.load``: the same requests for all servers; held-out prompts, and lengths."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tokenizers import Tokenizer, processors

from bench.load.errors import WorkloadError
from bench.load.held_out import HeldOut, read_tokenizer, repetition_rate, tokenizer_of
from bench.load.lengths import Lengths, around, fixed, lognormal, parse_lengths
from bench.load.workload_plan import WorkloadPlan
from bench.load.workloads import Ask, Workload
from bench.results.records import Load
from pdv_mp import assets

PROMPTS = [[number, 2, 3] for number in range(9)]


def closed(concurrency: int, name: str | None = None) -> Load:
    return Load(name=name or f"C = {concurrency}", kind="closed", concurrency=concurrency)


def first_asks(workload: Workload, block: int, load: Load, count: int = 20) -> list[list[Ask]]:
    return [
        list(itertools.islice(workload.asks(block, load, client), count))
        for client in range(load.concurrency or 0)
    ]


def test_requests_depend_on_seed_block_load_and_client_alone() -> None:
    workload, load = Workload(PROMPTS, around(16), seed=3), closed(4)
    asked = first_asks(workload, 1, load)
    assert asked == first_asks(Workload(PROMPTS, around(16), seed=3), 1, load)
    others = [
        first_asks(workload, 2, load),
        first_asks(Workload(PROMPTS, around(16), seed=4), 1, load),
        first_asks(workload, 1, closed(4, "another")),
    ]
    assert all(asked != other for other in others)
    assert len({tuple(client) for client in asked}) == 4
    for requests in asked:
        assert all(4 <= ask.max_tokens <= 28 for ask in requests)
        assert all(0 <= ask.prompt < len(PROMPTS) for ask in requests)


def test_prompts_may_bring_the_length_of_their_answers() -> None:
    own = [5, None, *range(101, 108)]
    workload = Workload(PROMPTS, fixed(16), own_outputs=own)
    for ask in first_asks(workload, 0, closed(1), 200)[0]:
        assert ask.max_tokens == (own[ask.prompt] or 16)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_of(None)


def test_held_out_windows_are_disjoint_text_of_the_files(tokenizer: Tokenizer) -> None:
    windows = HeldOut(tokenizer).windows(96)
    assert {len(ids) for ids in windows} == {96}
    texts = [text for _, text in assets.heldout_files()]
    assert all(any(tokenizer.decode(ids) in text for text in texts) for ids in windows[:40])
    total = sum(len(tokenizer.encode(text).ids) for text in texts)
    assert total * 0.9 < 96 * len(windows) <= total
    counts = Counter(map(tuple, windows))
    assert counts.most_common(1)[0][1] < 10


def test_repetitive_and_plain_prompts_are_the_ends_of_one_scale(tokenizer: Tokenizer) -> None:
    held_out = HeldOut(tokenizer)
    everything = held_out.windows(128)
    rates = {
        variety: [repetition_rate(ids) for ids in held_out.windows(128, variety)]
        for variety in ("plain", "repetitive")
    }
    assert max(rates["plain"]) < min(rates["repetitive"])
    assert len(rates["plain"]) == len(rates["repetitive"]) == len(everything) // 3
    assert np.mean(rates["repetitive"]) > 5 * np.mean(rates["plain"])
    assert repetition_rate([1, 2, 3, 4, 1, 2, 3]) == pytest.approx(1 / 5)
    assert repetition_rate([1, 2]) == 0


def test_cut_prompts_have_the_lengths_asked_for(tokenizer: Tokenizer) -> None:
    held_out = HeldOut(tokenizer)
    cuts = held_out.cuts(Lengths("uniform", 10, 30), 300, seed=1)
    assert {len(ids) for ids in cuts} == set(range(10, 31))
    assert cuts == held_out.cuts(Lengths("uniform", 10, 30), 300, seed=1)
    assert cuts != held_out.cuts(Lengths("uniform", 10, 30), 300, seed=2)
    everything = [id for _, text in assets.heldout_files() for id in tokenizer.encode(text).ids]
    joined = "".join(map(chr, everything))
    assert all("".join(map(chr, ids)) in joined for ids in cuts[:50])
    with pytest.raises(WorkloadError, match="longer than"):
        held_out.cuts(fixed(10**7), 1, seed=0)
    with pytest.raises(WorkloadError, match="no held-out file has 1000000 tokens"):
        held_out.windows(10**6)


def test_prompts_begin_as_the_tokenizer_wants_it() -> None:
    tokenizer = tokenizer_of(None)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    held_out = HeldOut(tokenizer)
    for ids in (*held_out.windows(20)[:5], *held_out.cuts(fixed(20), 5, seed=0)):
        assert (len(ids), ids[0], 0 in ids[1:]) == (20, 0, False)
    with pytest.raises(WorkloadError, match="at least 2"):
        held_out.windows(1)


def test_lengths_have_their_distributions() -> None:
    generator = np.random.default_rng(5)
    assert {fixed(7).draw(generator) for _ in range(9)} == {7}
    drawn = [Lengths("uniform", 3, 6).draw(generator) for _ in range(4000)]
    assert stats.chisquare([drawn.count(value) for value in (3, 4, 5, 6)]).pvalue > 0.001
    lengths = lognormal(200, 0.5)
    drawn = [lengths.draw(generator) for _ in range(4000)]
    assert np.median(drawn) == pytest.approx(200, rel=0.05)
    assert np.std(np.log(drawn)) == pytest.approx(0.5, rel=0.05)
    assert 1 <= min(drawn) <= max(drawn) <= lengths.high
    assert around(64) == Lengths("uniform", 16, 112)


@pytest.mark.parametrize("text", ["64", "uniform:16-112", "lognormal:64,0.5"])
def test_lengths_are_read_as_they_are_written(text: str) -> None:
    assert str(parse_lengths(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "nothing", "0", "-3", "1.5", "uniform:9-3", "uniform:0-3", "uniform:3", "normal:3,1"),
        *("lognormal:64", "lognormal:0,1", "lognormal:64,-1", "lognormal:64,nan"),
        *("lognormal:64,inf", "lognormal:64,800"),
    ],
)
def test_other_lengths_are_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(WorkloadError, match="is not a length") as raised:
        parse_lengths(text)
    assert "\n" not in str(raised.value)


def test_a_plan_says_what_it_made(tokenizer: Tokenizer, tmp_path: Path) -> None:
    workload = WorkloadPlan("repetitive", fixed(64), fixed(8)).build(tokenizer, seed=2)
    assert workload.facts["source"] == "repetitive"
    assert workload.facts["prompts"] == len(workload.prompts)
    assert workload.seed == 2
    varied = WorkloadPlan(prompts=parse_lengths("lognormal:40,0.5"), outputs=fixed(8))
    fitting = varied.build(tokenizer, context=48)
    assert fitting.facts["left_out"] > 0
    assert max(map(len, fitting.prompts)) <= 40
    with pytest.raises(WorkloadError, match="fit into 16 tokens"):
        WorkloadPlan().build(tokenizer, context=16)
    with pytest.raises(WorkloadError, match="one length"):
        WorkloadPlan("plain", parse_lengths("uniform:8-16")).build(tokenizer)
    with pytest.raises(WorkloadError, match=r"x\.jsonl: No such file"):
        WorkloadPlan(str(tmp_path / "x.jsonl")).build(tokenizer)


def test_a_model_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="no such folder"):
        tokenizer_of(str(tmp_path / "nothing"))
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(WorkloadError, match="cannot be read"):
        read_tokenizer(tmp_path / "tokenizer.json")
