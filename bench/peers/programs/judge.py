"""The judge of all outputs: the verifier in transformers, float32.

An output is read in one pass: each of its tokens has to be the one that the model, given all before
it, would choose. So an output that left the others' way at a near-tie is judged by what it chose,
not by what they did. Some engines ignore the end of sequence by forbidding its id: where the model
would choose it, the best of all others is right as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from .peer import Answer, Generate, Peer, Setting

TOLERANCE = 1e-3
"""A token whose logit is that close to the best one is a near-tie: float32 arithmetic in another
order may choose either."""

ROWS = 8
"""Outputs that are read at once."""


def load(setting: Setting) -> Generate:
    """``tokens`` is how many of each given list are the prompt; the answer has for every list the
    numbers of tokens that are near-ties and that are wrong."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(setting.threads)
    model = AutoModelForCausalLM.from_pretrained(
        setting.model, dtype=torch.float32, use_safetensors=True
    ).eval()

    given = model.generation_config.eos_token_id
    ends = torch.tensor([] if given is None else given, dtype=torch.int64).reshape(-1)

    @torch.inference_mode()
    def judge(texts: Sequence[Sequence[int]], prompt: int) -> Answer:
        found: list[list[int]] = []
        for first in range(0, len(texts), ROWS):
            ids = torch.tensor(texts[first : first + ROWS])
            logits = model(ids[:, :-1], logits_to_keep=ids.shape[1] - prompt).logits
            chosen = logits.gather(2, ids[:, prompt:, None])[:, :, 0]
            gap = torch.minimum(
                logits.max(2).values - chosen,
                logits.index_fill(2, ends, -torch.inf).max(2).values - chosen,
            ).clamp(min=0)
            near = ((gap > 0) & (gap <= TOLERANCE)).sum(1)
            wrong = (gap > TOLERANCE).sum(1)
            found += torch.stack([near, wrong], 1).tolist()
        return Answer(found)

    return judge


JUDGE = Peer(name="judge", package="transformers", modes=("judge",), load=load)
