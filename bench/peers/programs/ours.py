"""Our own server, started and asked as a user's script does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .peer import Answer, Generate, Peer, Setting


def load(setting: Setting) -> Generate:
    """A server for each mode; ``plain`` has a draft model and is asked not to speculate."""
    from pdv_mp import LLM, SamplingParams

    options: dict[str, Any] = {
        "enable_prefix_caching": False,
        "max_num_seqs": setting.concurrency,
        "max_model_len": setting.context,
        "threads": setting.threads,
    }
    if setting.mode == "fixed":
        options["num_speculative_tokens"] = setting.draft_tokens
    if setting.mode == "ngram":
        options["speculative_config"] = {"method": "ngram"}
    draft = None if setting.mode == "ngram" else setting.draft
    llm = LLM(setting.model, draft, topology="unified", **options)

    def generate(prompts: Sequence[Sequence[int]], tokens: int) -> Answer:
        params = SamplingParams(
            max_tokens=tokens, ignore_eos=True, speculate=setting.mode != "plain"
        )
        found = llm.generate([list(prompt) for prompt in prompts], params)
        return Answer([list(one.ids) for one in found], speculation=_sums(found))

    return generate


def _sums(completions: Sequence[Any]) -> dict[str, int] | None:
    known = [one.speculation for one in completions if one.speculation]
    if not known:
        return None
    return {
        name: sum(int(found[name]) for found in known) for name in ("cycles", "drafted", "accepted")
    }


PEER = Peer(
    name="pdv_mp",
    package="pdv-mp",
    modes=("auto", "fixed", "ngram", "plain"),
    load=load,
)
