"""transformers: ``generate`` on a batch, and with an ``assistant_model`` one request at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .peer import Answer, Generate, Peer, Setting


def load(setting: Setting) -> Generate:
    """``plain`` or ``assistant_model``, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(setting.threads)

    def of(folder: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True
        ).eval()

    model = of(setting.model)
    extra: dict[str, Any] = {}
    if setting.mode == "assistant_model":
        extra["assistant_model"] = of(setting.draft)

    def batch(prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=0,
            **extra,
        )
        found: list[list[int]] = output[:, ids.shape[1] :].tolist()
        return found

    def generate(prompts: Sequence[Sequence[int]], tokens: int) -> Answer:
        if not extra:
            return Answer(batch(prompts, tokens))
        return Answer([batch([prompt], tokens)[0] for prompt in prompts])

    return generate


PEER = Peer(
    name="transformers",
    package="transformers",
    modes=("plain", "assistant_model"),
    load=load,
    variables={"OMP_NUM_THREADS": "{threads}"},
    most={"assistant_model": 1},
)
