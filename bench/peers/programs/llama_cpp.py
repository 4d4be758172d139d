"""llama.cpp's server inside ``xllamacpp``, plain and with a draft model, on float32 GGUF files."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .gguf_files import converted
from .peer import Answer, Generate, Peer, Setting


def load(setting: Setting) -> Generate:
    """Converts the checkpoints on the first use."""
    folder = Path(setting.folder)
    model = converted(Path(setting.model), folder / "verifier.gguf")
    draft = converted(Path(setting.draft), folder / "draft.gguf")
    import xllamacpp

    server = xllamacpp.Server(_parameters(xllamacpp, setting, model, draft))
    pool = ThreadPoolExecutor(setting.concurrency)

    def one(prompt: Sequence[int], tokens: int) -> list[int]:
        found: dict[str, Any] = server.handle_completions(
            {
                "prompt": list(prompt),
                "n_predict": tokens,
                "max_tokens": tokens,
                "temperature": 0,
                "ignore_eos": True,
                "cache_prompt": False,
                "return_tokens": True,
                "verbose": True,
            }
        )
        if "error" in found:
            raise RuntimeError(str(found["error"]))
        return [int(token) for token in _tokens(found)]

    def generate(prompts: Sequence[Sequence[int]], tokens: int) -> Answer:
        return Answer(list(pool.map(one, prompts, [tokens] * len(prompts))))

    return generate


def _tokens(found: dict[str, Any]) -> list[int]:
    if "tokens" in found:
        return list(found["tokens"])
    return list(found["__verbose"]["tokens"])


def _parameters(library: Any, setting: Setting, model: Path, draft: Path) -> Any:
    parameters = library.CommonParams()
    parameters.model.path = str(model)
    parameters.n_ctx = setting.context * setting.concurrency
    parameters.n_parallel = setting.concurrency
    parameters.cpuparams.n_threads = setting.threads
    parameters.cpuparams_batch.n_threads = setting.threads
    parameters.cache_type_k = parameters.cache_type_v = library.ggml_type.GGML_TYPE_F32
    parameters.cache_prompt = False
    parameters.cache_ram_mib = 0
    parameters.n_threads_http = setting.concurrency + 2
    if setting.mode == "draft":
        speculative = parameters.speculative
        speculative.types = [library.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        speculative.draft.mparams.path = str(draft)
        speculative.draft.n_max = setting.draft_tokens
    return parameters


PEER = Peer(
    name="llama.cpp",
    package="xllamacpp",
    modes=("plain", "draft"),
    load=load,
    requirements=("xllamacpp>=2026.4", "gguf>=0.17,<1", "numpy>=1.26,<3"),
)
