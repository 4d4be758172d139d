"""Log-probabilities in the two forms of the OpenAI API, as JSON text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from gateway.model_card import Pieces
from pdv_mp.client.client_core import TokenLogprob


def ids_in(entries: Iterable[TokenLogprob]) -> set[int]:
    """All tokens that are named in some entries."""
    return {id for entry in entries for id in (entry.id, *(pair[0] for pair in entry.top))}


class LogprobsWriter:
    """Writes the entries of one completion, piece by piece; ``pieces`` must know every token.

    ``names_ids``: tokens are written as ``token_id:N``. ``text_offset`` counts characters of the
    tokens as they are written, beginning with those of an echoed prompt.
    """

    def __init__(self, pieces: Pieces, names_ids: bool) -> None:
        self._pieces = pieces
        self._names_ids = names_ids
        self._offset = 0

    def _quoted(self, id: int) -> str:
        return f'"token_id:{id}"' if self._names_ids else self._pieces[id].quoted

    def completion(
        self, entries: Sequence[TokenLogprob], alternatives: int, first: int | None = None
    ) -> str:
        """``choices[].logprobs`` of a completion. ``first``: a prompt's first token, which comes
        before the entries and has no log-probability."""
        tokens = [] if first is None else [first]
        tokens += [entry.id for entry in entries]
        offsets = []
        for id in tokens:
            offsets.append(str(self._offset))
            self._offset += len(self._pieces[id].text)
        numbers = [] if first is None else ["null"]
        numbers += [repr(entry.logprob) for entry in entries]
        tops = [] if first is None else ["null"]
        tops += [self._top(entry, alternatives) for entry in entries]
        return (
            f'{{"tokens":[{",".join(map(self._quoted, tokens))}],'
            f'"token_logprobs":[{",".join(numbers)}],"top_logprobs":[{",".join(tops)}],'
            f'"text_offset":[{",".join(offsets)}]}}'
        )

    def _top(self, entry: TokenLogprob, alternatives: int) -> str:
        if not alternatives:
            return "null"
        pairs = {self._quoted(id): logprob for id, logprob in reversed(entry.top)}
        best_first = dict(reversed(pairs.items()))  # of two tokens with one name the better stays
        best_first.setdefault(self._quoted(entry.id), entry.logprob)
        return "{" + ",".join(f"{name}:{value!r}" for name, value in best_first.items()) + "}"

    def chat(self, entries: Sequence[TokenLogprob]) -> str:
        """``choices[].logprobs`` of a chat completion."""
        content = [
            f'{{{self._fields(entry.id, entry.logprob)},"top_logprobs":['
            + ",".join(f"{{{self._fields(*pair)}}}" for pair in entry.top)
            + "]}"
            for entry in entries
        ]
        return f'{{"content":[{",".join(content)}],"refusal":null}}'

    def _fields(self, id: int, logprob: float) -> str:
        bytes_json = self._pieces[id].bytes_json
        return f'"token":{self._quoted(id)},"logprob":{logprob!r},"bytes":{bytes_json}'


def origins(pieces: Pieces, ids: Sequence[int], drafted: Sequence[int]) -> str:
    """The tokens of a chunk with their bytes, and whether each was a draft token, as JSON."""
    data = ",".join(pieces[id].bytes_json for id in ids)
    return (
        f'{{"ids":{json.dumps(list(ids), separators=(",", ":"))},"bytes":[{data}],'
        f'"drafted":{json.dumps(list(drafted), separators=(",", ":"))}}}'
    )
