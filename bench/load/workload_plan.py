"""Which workload is wanted, as the command line says it, and the workload that comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bench.load.errors import WorkloadError
from bench.load.held_out import CUT_PROMPTS, HeldOut, Variety
from bench.load.lengths import Lengths, around, fixed
from bench.load.prompt_files import FilePrompt, read_jsonl, read_share_gpt
from bench.load.workloads import Workload

HELD_OUT: dict[str, Variety] = {"held-out": "all", "repetitive": "repetitive", "plain": "plain"}
"""Names of workloads; all others are files."""

DEFAULT_PROMPTS, DEFAULT_OUTPUTS = fixed(128), around(64)

_SHARE_GPT = ".json"


@dataclass(frozen=True, slots=True)
class WorkloadPlan:
    """``source``: ``held-out``, ``repetitive`` or ``plain`` (bench/load/held_out.py), or a file:
    JSONL with a prompt on each line, or one whose name ends in ``.json`` with conversations in the
    form of ShareGPT.

    ``prompts``: how long held-out prompts are; disjoint windows if all are of one length, else cuts
    from anywhere. ``outputs``: how long answers are, where the file does not say.
    ``temperature``: 0 is greedy.
    """

    source: str = "held-out"
    prompts: Lengths = DEFAULT_PROMPTS
    outputs: Lengths = DEFAULT_OUTPUTS
    temperature: float = 0.0

    def build(self, tokenizer: Tokenizer, seed: int = 0, context: int | None = None) -> Workload:
        """The workload. ``context``: most tokens of prompt and answer together; prompts that are
        too long for it are left out, and ``facts`` says how many.

        Raises WorkloadError if a file cannot be read, or nothing is left.
        """
        found = self._prompts(tokenizer, seed)
        kept = [p for p in found if context is None or self._need(p) <= context]
        if not kept:
            raise WorkloadError(
                f"workload {self.source}: no prompt and its answer fit into {context} tokens; ask "
                "for shorter ones"
            )
        facts: dict[str, Any] = {
            "source": self.source,
            "prompt_lengths": str(self.prompts) if self.source in HELD_OUT else "the file's",
            "output_lengths": str(self.outputs),
            "temperature": self.temperature,
            "prompts": len(kept),
            "left_out": len(found) - len(kept),
        }
        own = [prompt.max_tokens for prompt in kept]
        return Workload(
            prompts=[prompt.ids for prompt in kept],
            outputs=self.outputs,
            seed=seed,
            temperature=self.temperature,
            own_outputs=own if any(length is not None for length in own) else (),
            facts=facts,
        )

    def _need(self, prompt: FilePrompt) -> int:
        own = prompt.max_tokens
        return len(prompt.ids) + (self.outputs.high if own is None else own)

    def _prompts(self, tokenizer: Tokenizer, seed: int) -> list[FilePrompt]:
        variety = HELD_OUT.get(self.source)
        if variety is None:
            path = Path(self.source)
            read = read_share_gpt if path.suffix == _SHARE_GPT else read_jsonl
            return read(path, tokenizer)
        held_out = HeldOut(tokenizer)
        if self.prompts.kind == "fixed":
            cut = held_out.windows(self.prompts.low, variety)
        elif variety == "all":
            cut = held_out.cuts(self.prompts, CUT_PROMPTS, seed)
        else:
            raise WorkloadError(
                f"workload {self.source} compares prompts of one length; give a number instead of "
                f"{self.prompts}"
            )
        return [FilePrompt(ids) for ids in cut]
