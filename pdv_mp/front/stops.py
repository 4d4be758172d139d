"""Finding stop texts in a text that arrives in pieces, and the text of one request with them.

The matcher is the automaton of Aho and Corasick, "Efficient string matching: an aid to
bibliographic search" (1975): one step per character, however many stop texts there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from pdv_mp.front.text import Detokenizer


class StopTexts:
    """Which of some texts occurs first; immutable. First is the one whose last character comes
    first, and of several that end together the longest."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self.depth = [0]
        self._match: list[str | None] = [None]
        for text in texts:
            node = 0
            for character in text:
                if character not in self._next[node]:
                    self._next[node][character] = len(self._next)
                    self._next.append({})
                    self.depth.append(self.depth[node] + 1)
                    self._match.append(None)
                node = self._next[node][character]
            self._match[node] = text
        self._fail = [0] * len(self._next)
        queue = deque(self._next[0].values())
        while queue:
            node = queue.popleft()
            for character, child in self._next[node].items():
                self._fail[child] = self.step(self._fail[node], character)
                if self._match[child] is None:
                    self._match[child] = self._match[self._fail[child]]
                queue.append(child)

    def step(self, state: int, character: str) -> int:
        """The state after one more character; ``depth[state]`` characters may begin a match."""
        while state and character not in self._next[state]:
            state = self._fail[state]
        return self._next[state].get(character, 0)

    def scan(self, state: int, text: str) -> tuple[int, int, str | None]:
        """Read ``text``. Returns the new state, how many characters were read, and the match that
        ended there, if one did."""
        for index, character in enumerate(text):
            state = self.step(state, character)
            if self._match[state] is not None:
                return state, index + 1, self._match[state]
        return state, len(text), None


@dataclass(frozen=True, slots=True)
class Piece:
    """What some ids added: ``num_ids`` of them count, the last of which completed ``stop``."""

    text: str
    num_ids: int
    stop: str | None = None


class OutputText:
    """The text of one request: detokenized, cut before a stop text, never taken back."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._stops = StopTexts(stops) if stops else None
        self._state = 0
        self._held = ""  # the end of the text that may begin a stop text

    def push(self, ids: Sequence[int], final: bool) -> Piece:
        """Add ids; ``final`` says that no more follow. Once a stop was found, add none."""
        if self._stops is None:
            text = self._detokenizer.push(ids)
            return Piece(text + self._detokenizer.flush() if final else text, len(ids))
        parts: list[str] = []
        for index, id in enumerate(ids):
            found = self._scan(self._detokenizer.push((id,)), parts)
            if found is None:
                found = self._scan_pending(parts)
            if found is not None:
                return Piece("".join(parts), index + 1, found)
        if final:
            found = self._scan(self._detokenizer.flush(), parts)
            if found is None:
                parts.append(self._held)
                self._held = ""
            return Piece("".join(parts), len(ids), found)
        return Piece("".join(parts), len(ids))

    def _scan(self, text: str, parts: list[str]) -> str | None:
        """Feed text to the matcher; what is certain goes to ``parts``."""
        if self._stops is None or not text:
            return None
        self._state, read, found = self._stops.scan(self._state, text)
        known = self._held + text[:read]
        keep = len(found) if found is not None else self._stops.depth[self._state]
        parts.append(known[: len(known) - keep])
        self._held = known[len(known) - keep :]
        return found

    def _scan_pending(self, parts: list[str]) -> str | None:
        """A stop text may end in text that the detokenizer still holds."""
        pending = self._detokenizer.pending()
        if self._stops is None or not pending:
            return None
        if self._stops.scan(self._state, pending)[2] is None:
            return None
        return self._scan(pending, parts)
