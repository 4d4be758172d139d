"""``--speculative-config``: vLLM's form, what it means for other options, and mistakes in it."""

from __future__ import annotations

from typing import Any

import pytest
from server_process import run_launch

from pdv_mp.config import ConfigError, EngineConfig
from pdv_mp.speculative_config import folded, parse


def options(text: str, **others: Any) -> EngineConfig:
    return EngineConfig.from_options(speculative_config=text, **others)


def test_vllms_form() -> None:
    found = parse(
        '{"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 2, '
        '"num_speculative_tokens": 5}'
    )
    assert (found.method, found.least, found.most) == ("ngram", 2, 4)
    assert found.num_speculative_tokens == 5
    found = parse('{"model": "a/b", "num_speculative_tokens": "auto"}')
    assert (found.method, found.model) == ("draft_model", "a/b")


def test_other_options_say_the_same_afterwards() -> None:
    config = folded(options('{"method": "ngram", "num_speculative_tokens": 5}'))
    assert config.model.draft_model == "none"
    assert config.speculation.num_speculative_tokens == 5
    assert folded(config) == config
    config = folded(options('{"method": "draft_model", "model": "x"}'))
    assert config.model.draft_model == "x"
    assert config.speculation.num_speculative_tokens == "auto"
    assert config.speculation.speculative_config is None
    assert folded(EngineConfig()) == EngineConfig()


@pytest.mark.parametrize(
    ("text", "others", "message"),
    [
        ("ngram", {}, "'ngram' is not JSON"),
        ("[1]", {}, "is not a JSON object"),
        ("{}", {}, "the key 'method' is missing; use one of ngram, draft_model"),
        ('{"method": "eagle"}', {}, "unknown method 'eagle'; use one of ngram, draft_model"),
        ('{"method": ["ngram"]}', {}, r"unknown method \['ngram'\]"),
        ('{"method": "ngram", "k": 3}', {}, "unknown key 'k'; known are method, model"),
        ('{"method": "ngram", "model": "x"}', {}, "ngram drafts without a model"),
        ('{"method": "draft_model", "model": 3}', {}, "'model' 3 is refused"),
        ('{"model": "x", "prompt_lookup_max": 3}', {}, "'prompt_lookup_max' is for the method"),
        ('{"method": "ngram", "prompt_lookup_min": 0}', {}, "0 must be a whole number from 1 to"),
        ('{"method": "ngram", "prompt_lookup_max": "4"}', {}, "'4' must be a whole number"),
        (
            '{"method": "ngram", "prompt_lookup_max": 2, "prompt_lookup_min": 3}',
            {},
            "prompt_lookup_min 3 is over prompt_lookup_max 2",
        ),
        ('{"method": "ngram", "num_speculative_tokens": 99}', {}, "99 must be a whole number"),
        ('{"method": "ngram", "num_speculative_tokens": true}', {}, "True must be a whole number"),
        (
            '{"method": "ngram", "num_speculative_tokens": 3}',
            {"num_speculative_tokens": 4},
            "num_speculative_tokens 3, --num-speculative-tokens 4",
        ),
        ('{"method": "ngram"}', {"draft_model": "x"}, "leave out --draft-model x"),
        ('{"model": "x"}', {"draft_model": "y"}, "says model x, --draft-model y"),
    ],
)
def test_mistakes_get_one_sentence(text: str, others: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        folded(options(text, **others))
    assert str(caught.value).startswith("--speculative-config")
    assert "\n" not in str(caught.value)


def test_a_mistake_ends_the_launcher_with_2() -> None:
    done = run_launch("--speculative-config", '{"method": "medusa"}')
    assert done.code == 2
    assert "unknown method 'medusa'; use one of ngram, draft_model" in done.stderr
    assert "Traceback" not in done.stderr
