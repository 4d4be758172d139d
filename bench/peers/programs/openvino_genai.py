"""OpenVINO GenAI's continuous batching, plain and with a draft model.

Its default on a CPU with the instructions for it is bfloat16 arithmetic and a KV cache of 8 bits;
both are told to be float32, as they are in all engines here, so that the work is the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .peer import Answer, Generate, Peer, Setting

CACHE_GB = 1


def load(setting: Setting) -> Generate:
    """Converts the checkpoints on the first use."""
    folder = Path(setting.folder)
    model = _converted(setting.model, folder / "verifier")
    draft = _converted(setting.draft, folder / "draft")
    import numpy as np
    import openvino
    import openvino_genai as genai

    def scheduler() -> Any:
        config = genai.SchedulerConfig()
        config.cache_size = CACHE_GB
        config.enable_prefix_caching = False
        config.max_num_seqs = setting.concurrency
        return config

    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "INFERENCE_NUM_THREADS": setting.threads,
    }
    extra: dict[str, Any] = {}
    if setting.mode == "draft":
        extra["draft_model"] = genai.draft_model(
            str(draft), "CPU", scheduler_config=scheduler(), **properties
        )
    pipeline = genai.ContinuousBatchingPipeline(
        str(model), scheduler(), "CPU", {**properties, **extra}
    )

    def generate(prompts: Sequence[Sequence[int]], tokens: int) -> Answer:
        config = genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.ignore_eos = True
        config.do_sample = False
        if extra:
            config.num_assistant_tokens = setting.draft_tokens
        given = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        found = pipeline.generate(given, [config] * len(prompts))
        return Answer([list(map(int, one.m_generation_ids[0])) for one in found])

    return generate


def _converted(source: str, folder: Path) -> Path:
    """A checkpoint in OpenVINO's format, float32, moved into place when it is whole."""
    if folder.exists():
        return folder
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig
    from transformers import AutoTokenizer

    unfinished = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    main_export(
        source,
        output=unfinished,
        task="text-generation-with-past",
        device="cpu",
        ov_config=OVConfig(dtype="fp32"),
    )
    parts = convert_tokenizer(AutoTokenizer.from_pretrained(source), with_detokenizer=True)
    for part, name in zip(parts, ("tokenizer", "detokenizer"), strict=True):
        openvino.save_model(part, unfinished / f"openvino_{name}.xml")
    return unfinished.rename(folder)


PEER = Peer(
    name="openvino-genai",
    package="openvino-genai",
    modes=("plain", "draft"),
    load=load,
    requirements=("openvino-genai>=2026.0,<2027", "optimum-intel>=2.0,<3", "torch==2.13.0"),
    removed=("torchvision",),
)
