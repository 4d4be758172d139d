from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdv_mp.config import (
    CacheOptions,
    ConfigError,
    EngineConfig,
    SchedulingOptions,
    option_groups,
    option_info,
)


def test_every_option_is_documented_and_named_once() -> None:
    names = [
        field.name
        for group in option_groups().values()
        for field in dataclasses.fields(group)
        if option_info(field).help
    ]
    assert (
        len(names)
        == len(set(names))
        == sum(len(dataclasses.fields(group)) for group in option_groups().values())
    )


@given(
    st.integers(1, 4096),
    st.floats(1.0, 100.0),
    st.one_of(st.none(), st.integers(1, 2**40)),
    st.sampled_from(["auto", "contiguous", "paged"]),
)
def test_json_gives_the_same_configuration_and_fingerprint(
    seqs: int, factor: float, memory: int | None, layout: str
) -> None:
    config = EngineConfig.from_options(
        max_num_seqs=seqs, queue_factor=factor, kv_cache_memory=memory, kv_layout=layout
    )
    again = EngineConfig.from_json(config.to_json())
    assert again == config
    assert again.fingerprint == config.fingerprint


def test_fingerprint_depends_on_every_option() -> None:
    base = EngineConfig()
    others: dict[str, Any] = {
        "max_num_seqs": 7,
        "num_speculative_tokens": 3,
        "kv_cache_memory": 1 << 20,
        "model": "x",
        "port": 1,
    }
    prints = {base.fingerprint} | {
        EngineConfig.from_options(**{name: value}).fingerprint for name, value in others.items()
    }
    assert len(prints) == len(others) + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_seqs": 0}, "--max-num-seqs 0 must be at least 1"),
        ({"port": 65536}, "--port 65536 must be at least 0 and at most 65535"),
        ({"kv_layout": "round"}, "--kv-layout 'round' is not one of auto, contiguous, paged"),
        ({"max_num_sequences": 1}, "unknown option 'max_num_sequences'"),
    ],
)
def test_bad_values_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        EngineConfig.from_options(**options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"modle": {}}', "unknown configuration key 'modle'"),
        ('{"cache": {"blocksize": 1}}', "unknown configuration key 'blocksize' in 'cache'"),
    ],
)
def test_unknown_keys_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig.from_json(text)


def test_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CacheOptions().block_size = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("seqs", "factor", "admitted"), [(1, 1.0, 1), (32, 1.2, 39), (10, 1.5, 15)]
)
def test_admission_rounds_up(seqs: int, factor: float, admitted: int) -> None:
    options = SchedulingOptions(max_num_seqs=seqs, queue_factor=factor)
    assert options.max_admitted == admitted


def test_what_the_launcher_imports_is_light() -> None:
    heavy = ["torch", "transformers", "tokenizers", "scipy"]
    code = (
        "import json, sys\n"
        "import launcher.launch_command, launcher.checks, launcher.supervisor, pdv_mp.client.llm\n"
        f"print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
