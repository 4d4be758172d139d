"""What a request must satisfy before it is accepted, and what it gets where it says nothing."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from pdv_mp.front.text import TextCodec, TextError
from pdv_mp.sampling_params import SamplingParams
from pdv_mp.wire import client_messages
from pdv_mp.wire.protocol import ErrorCode, ProtocolError

DEFAULT_MAX_TOKENS = 128


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the front must know of the models to check a request."""

    vocab_size: int
    eos_ids: tuple[int, ...]
    max_model_len: int
    max_request_tokens: int
    has_logits: bool = True
    """An emulated device has none."""

    @property
    def room(self) -> int:
        """Most tokens of prompt and output together."""
        return min(self.max_model_len, self.max_request_tokens)

    @property
    def max_prompt_tokens(self) -> int:
        """Most tokens of a prompt: at least one of the output must find room."""
        return self.room - 1

    @property
    def max_tokens(self) -> int:
        """Most tokens of an output: a prompt has at least one."""
        return self.room - 1


class Admission:
    """Checks prompts and parameters against the models' limits."""

    def __init__(self, codec: TextCodec, facts: ModelFacts) -> None:
        self._codec = codec
        self._facts = facts
        self._longest_prompt = facts.max_prompt_tokens * codec.longest_token

    def check_length(self, id: str, prompt: str) -> None:
        """Raises ProtocolError for a text that is far too long to try."""
        if len(prompt) > self._longest_prompt:
            raise ProtocolError(
                ErrorCode.TOO_LARGE,
                f"prompt has {len(prompt)} characters, which cannot be "
                f"{self._facts.max_prompt_tokens} tokens or fewer",
                id,
            )

    def tokenize(self, id: str, prompt: str, *, bare: bool = False) -> list[int]:
        """Ids of a text, a ``bare`` one without what the tokenizer's template adds. Raises
        ProtocolError for one that is far too long to try."""
        self.check_length(id, prompt)
        try:
            return self._codec.encode(prompt, bare=bare)
        except TextError as error:
            raise ProtocolError(ErrorCode.INTERNAL, str(error), id) from error

    def detokenize(self, id: str, ids: list[int]) -> str:
        """Text of ids. Raises ProtocolError for an id outside the vocabulary, and for more ids than
        a request can have."""
        self._check_detokenize(id, ids)
        return self._codec.decode(ids)

    def bytes_of(self, id: str, ids: list[int]) -> list[list[int]]:
        """The bytes that each token stands for. Raises as :meth:`detokenize`."""
        self._check_detokenize(id, ids)
        return [list(self._codec.token_bytes(token)) for token in ids]

    def _check_detokenize(self, id: str, ids: list[int]) -> None:
        if len(ids) > self._facts.max_model_len:
            raise ProtocolError(
                ErrorCode.TOO_LARGE,
                f"ids has {len(ids)} tokens; at most {self._facts.max_model_len} are allowed",
                id,
            )
        self.check_ids("ids", ids, id)

    def check_ids(self, name: str, ids: list[int], id: str) -> None:
        """Raises ProtocolError for an id outside the vocabulary."""
        if ids and (min(ids) < 0 or max(ids) >= self._facts.vocab_size):
            raise ProtocolError(
                ErrorCode.BAD_REQUEST,
                f"{name} must lie between 0 and {self._facts.vocab_size - 1}",
                id,
            )

    def parameters(
        self, message: client_messages.Generate, prompt_ids: list[int]
    ) -> SamplingParams:
        """The request's parameters with ``max_tokens`` and ``seed`` filled in. Raises ProtocolError
        for a prompt or parameters that the server's limits refuse."""
        name = "prompt" if message.prompt_ids is None else "prompt_ids"
        params, facts = message.params, self._facts
        if not prompt_ids or message.prompt == "":
            raise ProtocolError(ErrorCode.BAD_REQUEST, f"{name} is empty", message.id)
        self.check_ids(name, prompt_ids, message.id)
        wanted = (params.logprobs, params.prompt_logprobs) != (None, None)
        if wanted and not facts.has_logits:
            raise ProtocolError(
                ErrorCode.BAD_REQUEST,
                "an emulated device computes no log-probabilities",
                message.id,
            )
        if len(prompt_ids) > facts.max_prompt_tokens:
            raise ProtocolError(
                ErrorCode.TOO_LARGE,
                f"{name} has {len(prompt_ids)} tokens; at most {facts.max_prompt_tokens} are "
                "allowed",
                message.id,
            )
        if params.max_tokens is not None and params.max_tokens > facts.max_tokens:
            raise ProtocolError(
                ErrorCode.TOO_LARGE,
                f"max_tokens {params.max_tokens} is over the limit of {facts.max_tokens}",
                message.id,
            )
        max_tokens = params.max_tokens
        if max_tokens is None:
            max_tokens = min(DEFAULT_MAX_TOKENS, facts.room - len(prompt_ids))
        if len(prompt_ids) + max_tokens > facts.room:
            raise ProtocolError(
                ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                f"{name} has {len(prompt_ids)} tokens and max_tokens is {max_tokens}; together "
                f"they may be at most {facts.room}",
                message.id,
            )
        return replace(
            params,
            max_tokens=max_tokens,
            top_k=params.top_k if 0 < params.top_k < facts.vocab_size else 0,
            seed=secrets.randbits(53) if params.seed is None else params.seed,
        )
