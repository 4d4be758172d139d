"""Prompt files and traces: what is in them arrives, and what is wrong with them is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from bench.load.errors import WorkloadError
from bench.load.held_out import HeldOut, tokenizer_of
from bench.load.lengths import fixed
from bench.load.prompt_files import read_jsonl, read_share_gpt
from bench.load.trace import read_trace
from bench.load.workload_plan import WorkloadPlan


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_of(None)


def write(folder: Path, text: str, name: str = "prompts.jsonl") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_jsonl_prompts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lines = [
        {"prompt": "def add("},
        {"prompt": [5, 6, 7], "max_tokens": 3},
        {"prompt": "π ≈ 3\r\n"},
    ]
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    path = write(tmp_path, text)
    found = read_jsonl(path, tokenizer)
    assert [tokenizer.decode(p.ids) for p in (found[0], found[2])] == ["def add(", "π ≈ 3\r\n"]
    assert [p.max_tokens for p in found] == [None, 3, None]
    assert found[1].ids == [5, 6, 7]
    workload = WorkloadPlan(str(path), outputs=fixed(9)).build(tokenizer)
    assert list(workload.own_outputs) == [None, 3, None]
    assert workload.prompts[1] == [5, 6, 7]


def turns(*values: str, first: str = "human") -> dict[str, object]:
    speakers = (first, "gpt", "human", "gpt")
    return {
        "conversations": [{"from": s, "value": v} for s, v in zip(speakers, values, strict=False)]
    }


def test_share_gpt_conversations(tokenizer: Tokenizer, tmp_path: Path) -> None:
    conversations = [
        turns("What is a list?", "A sequence.", "And a map?", "Pairs."),
        turns("no answer"),
        turns("a model begins", "then a human", first="gpt"),
        turns("empty", ""),
        {"conversations": []},
        turns("Sum of [1, 2]?", "3 }, {"),
    ]
    path = write(tmp_path, json.dumps(conversations, indent=2), "share.json")
    found = read_share_gpt(path, tokenizer)
    assert [tokenizer.decode(p.ids) for p in found] == ["What is a list?", "Sum of [1, 2]?"]
    answers = ("A sequence.", "3 }, {")
    assert [p.max_tokens for p in found] == [len(tokenizer.encode(a).ids) for a in answers]
    assert WorkloadPlan(str(path)).build(tokenizer).prompts[0] == found[0].ids


GOOD = '{"prompt": "x"}\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "{", "line 2: this is not JSON"),
        (GOOD + "\n[1]", "line 3: this is not a JSON map"),
        (GOOD + "[" * 100_000, "line 2: this is not JSON"),
        ('{"text": "x"}', "line 1: prompt must be a text or a list of token ids"),
        (GOOD + '{"prompt": [1, true]}', "line 2: prompt must be"),
        (GOOD + '{"prompt": [1, -1]}', "line 2: prompt must be"),
        ('{"prompt": ""}', "line 1: prompt is empty"),
        ('{"prompt": [99999999]}', "line 1: token id 99999999 is not in the vocabulary"),
        ('{"prompt": "\\ud800"}', "line 1: a text has a lone surrogate"),
        ('{"prompt": "x", "max_tokens": 0}', "line 1: max_tokens must be a whole number"),
        ('{"prompt": "x", "max_tokens": "9"}', "line 1: max_tokens must be a whole number"),
        ("\n\n", "has no prompts"),
    ],
)
def test_a_malformed_jsonl_file_is_named_with_its_line(
    tokenizer: Tokenizer, tmp_path: Path, text: str, said: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(WorkloadError) as raised:
        read_jsonl(path, tokenizer)
    assert str(raised.value).startswith(str(path))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


TURNS = json.dumps(turns("q", "a"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1}', "line 1: this is not a JSON list"),
        ("", "line 1: this is not a JSON list"),
        (f"[{TURNS},\n{TURNS}\n{TURNS}]", "line 3: this is not JSON: a comma or ] is missing"),
        (f"[{TURNS},\n{{\n\n,", "line 4: this is not JSON"),
        (f"[{TURNS},\n", "line 2: this is not JSON"),
        (f"[{TURNS}", "line 1: this is not JSON: a comma or ]"),
        (f"[{TURNS},\n\n7]", "line 3: a conversation must be a map"),
        (f'[{TURNS},\n{{"conversations": "x"}}]', "line 2: a conversation must be a map"),
        (f'[{TURNS},\n{{"conversations": [1]}}]', "line 2: a turn must be a map"),
        ('[\n{"conversations": [{"from": "human", "value": 3}]}]', "line 2: a turn must be"),
        ("[]", "has no conversation"),
        (f"[{json.dumps(turns('q'))}]", "has no conversation"),
    ],
)
def test_a_malformed_share_gpt_file_is_named_with_its_line(
    tokenizer: Tokenizer, tmp_path: Path, text: str, said: str
) -> None:
    path = write(tmp_path, text, "share.json")
    with pytest.raises(WorkloadError) as raised:
        read_share_gpt(path, tokenizer)
    assert str(raised.value).startswith(str(path))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_cannot_be_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="No such file"):
        read_jsonl(tmp_path / "none.jsonl", tokenizer)
    with pytest.raises(WorkloadError, match="Is a directory"):
        read_trace(tmp_path, tokenizer)
    path = tmp_path / "latin.jsonl"
    path.write_bytes(GOOD.encode() * 2 + '{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(WorkloadError, match="line 3: this is not UTF-8"):
        read_jsonl(path, tokenizer)


def test_a_trace_is_replayed_as_it_is_written(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lines = [
        '{"arrival": 0, "prompt": "def f():", "max_tokens": 4}',
        '{"arrival": 0.25, "prompt_tokens": 33, "max_tokens": 5, "model": "ignored"}',
        '{"arrival": 0.25, "prompt": [9, 8], "max_tokens": 6}',
        '{"arrival": 7.5, "prompt_tokens": 40, "max_tokens": 7}',
    ]
    trace = read_trace(write(tmp_path, "\n".join(lines)), tokenizer, seed=1)
    assert trace.seconds == 7.5
    assert [at for at, _ in trace.scheduled()] == [0, 0.25, 0.25, 7.5]
    assert [ask.prompt for _, ask in trace.scheduled()] == [0, 1, 2, 3]
    assert [ask.max_tokens for ask in trace.asks] == [4, 5, 6, 7]
    assert trace.prompts[0] == tokenizer.encode("def f():").ids
    assert trace.prompts[2] == [9, 8]
    assert [len(trace.prompts[i]) for i in (1, 3)] == [33, 40]
    assert tokenizer.decode(trace.prompts[1]) in "".join(tokenizer.decode(HeldOut(tokenizer)._all))
    assert trace == read_trace(tmp_path / "prompts.jsonl", tokenizer, seed=1)
    assert trace != read_trace(tmp_path / "prompts.jsonl", tokenizer, seed=2)
    with pytest.raises(WorkloadError, match="line 2: prompt and answer have 33 and 5 tokens"):
        read_trace(tmp_path / "prompts.jsonl", tokenizer, context=37)


REQUEST = '{"arrival": 1, "prompt": "x", "max_tokens": 2}\n'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "this is not JSON"),
        ("[]", "this is not a JSON map"),
        ('{"prompt": "x", "max_tokens": 2}', "arrival must be a number"),
        ('{"arrival": "1", "prompt": "x", "max_tokens": 2}', "arrival must be a number"),
        ('{"arrival": true, "prompt": "x", "max_tokens": 2}', "arrival must be a number"),
        ('{"arrival": NaN, "prompt": "x", "max_tokens": 2}', "arrival must be 0 or more"),
        ('{"arrival": Infinity, "prompt": "x", "max_tokens": 2}', "arrival must be 0 or more"),
        ('{"arrival": -1, "prompt": "x", "max_tokens": 2}', "arrival must be 0 or more"),
        ('{"arrival": 0.5, "prompt": "x", "max_tokens": 2}', "before the one on the line above"),
        ('{"arrival": 1, "prompt": "x"}', "max_tokens must be a whole number"),
        ('{"arrival": 1, "max_tokens": 2}', "one of prompt and prompt_tokens"),
        ('{"arrival": 1, "prompt": "x", "prompt_tokens": 3, "max_tokens": 2}', "one of prompt"),
        ('{"arrival": 1, "prompt_tokens": 0, "max_tokens": 2}', "prompt_tokens must be a whole"),
        ('{"arrival": 1, "prompt_tokens": 99999999, "max_tokens": 2}', "is longer than"),
    ],
)
def test_a_malformed_trace_is_named_with_its_line(
    tokenizer: Tokenizer, tmp_path: Path, line: str, said: str
) -> None:
    path = write(tmp_path, REQUEST + "\n" + line + "\n")
    with pytest.raises(WorkloadError) as raised:
        read_trace(path, tokenizer)
    assert str(raised.value).startswith(f"{path}, line 3: ")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_empty_trace(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="has no requests"):
        read_trace(write(tmp_path, "\n"), tokenizer)
