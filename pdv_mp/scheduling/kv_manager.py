"""KV room of sequences: what they are given, what they share, and what outlives them."""

from __future__ import annotations

from pdv_mp.memory.blocks import extend_digests
from pdv_mp.scheduling.counters import Counters
from pdv_mp.scheduling.pools import Pools
from pdv_mp.scheduling.sequences import Sequence, SequenceTable, Slots


class KVManager:
    """Takes slots and blocks from the pools for sequences, and keeps the table's columns in step.

    With prefix caching a sequence takes over the whole blocks at the beginning of its text that
    some sequence has computed, and its own are kept for others: those of its prompt as soon as they
    are computed, those of its output when it leaves its slot. Only rows of committed tokens are
    shared, and of a sequence that fills the draft's cache only those that both models have.
    """

    def __init__(
        self,
        table: SequenceTable,
        pools: Pools,
        counters: Counters,
        prefix_caching: bool,
    ) -> None:
        self._table = table
        self._pools = pools
        self._counters = counters
        self._prefix_caching = prefix_caching
        self._computing: dict[bytes, Sequence] = {}
        self._lingering: list[tuple[int, list[bytes], bool]] = []

    def admit(self, sequence: Sequence, lookahead: int, spare: int) -> bool:
        """Give a sequence a slot with room for its tokens and ``lookahead`` more.

        ``spare``: blocks to leave available. False, and nothing changed, while there is no room,
        and while another sequence computes a block that this one can take over soon.
        """
        digests = self._readable(sequence)
        with_draft = sequence.fills_draft
        if digests:
            known = self._pools.known(digests, with_draft)
            if known < len(digests) and self._computes(digests[known], with_draft):
                return False
        wanted = min(sequence.max_len, sequence.num_tokens + lookahead)
        grant = self._pools.acquire(wanted, digests, with_draft, spare)
        if grant is None:
            return False
        sequence.slot = grant.slot
        if not sequence.admissions:
            sequence.cached = grant.cached
        sequence.admissions += 1
        self._counters.cached_tokens += grant.cached
        self._table.fill(sequence, grant.cached, self._pools.room(grant.slot))
        for digest in sequence.digests[grant.cached // self._pools.block_size :]:
            self._computing.setdefault(digest, sequence)
        return True

    def verifier_knows_more(self, sequence: Sequence) -> bool:
        """Whether the prefix cache has more of a text for the verifier than for both models."""
        digests = self._readable(sequence)
        return self._pools.known(digests, False) > self._pools.known(digests, True)

    def grow(self, slot: int, num_tokens: int) -> bool:
        """Give a slot room for ``num_tokens``; False, and nothing changed, if there is none."""
        if not self._pools.grow(slot, num_tokens):
            return False
        self._table.room[slot] = self._pools.room(slot)
        return True

    def publish(self, sequence: Sequence) -> None:
        """Let others use the blocks that a sequence has computed."""
        if self._prefix_caching:
            digests = self._written(sequence)
            self._pools.publish(sequence.slot, digests, self._has_draft(sequence))
            self._computed(sequence, digests)

    def vacate(self, sequence: Sequence) -> None:
        """Take a sequence's slot back and keep what others may use; no stage may have it.

        A slot to which a draft lane may still write is kept apart until :meth:`halted`.
        """
        slot, digests, with_draft = sequence.slot, [], self._has_draft(sequence)
        if self._prefix_caching:
            digests = self._written(sequence)
            self._computed(sequence, sequence.digests)
        sequence.slot = -1
        if self._table.ahead[slot]:
            self._lingering.append((slot, list(digests), with_draft))
        else:
            self._free(slot, digests, with_draft)

    @property
    def num_lingering(self) -> int:
        """Slots that are kept apart."""
        return len(self._lingering)

    def halted(self, going_on: Slots) -> None:
        """No draft lane writes ahead any more, except to ``going_on``."""
        self._table.ahead[:] = False
        self._table.ahead[going_on] = True
        freed = [entry for entry in self._lingering if not self._table.ahead[entry[0]]]
        self._lingering = [entry for entry in self._lingering if self._table.ahead[entry[0]]]
        for slot, digests, with_draft in freed:
            self._free(slot, digests, with_draft)

    def _free(self, slot: int, digests: list[bytes], with_draft: bool) -> None:
        if self._prefix_caching:
            self._pools.release(slot, digests, with_draft)
        else:
            self._pools.release(slot)
        self._table.clear(slot)

    def _has_draft(self, sequence: Sequence) -> bool:
        """Whether the draft's cache has the rows of a sequence that has a slot: all along, or by
        now, but for less than a block."""
        lacking = self._table.target_len[sequence.slot] - self._table.draft_len[sequence.slot]
        return sequence.fills_draft or bool(lacking < self._pools.block_size)

    def _readable(self, sequence: Sequence) -> list[bytes]:
        """Names of the blocks that a sequence may take over: one token must be left to compute."""
        if not self._prefix_caching:
            return []
        block_size = self._pools.block_size
        extend_digests(sequence.digests, sequence.token_ids, block_size)
        if sequence.prompt_logprobs >= 0:
            return []
        return sequence.digests[: (sequence.num_tokens - 1) // block_size]

    def _written(self, sequence: Sequence) -> list[bytes]:
        """Names of the blocks whose rows are written and committed."""
        table, slot = self._table, sequence.slot
        rows = min(table.target_len[slot], table.committed[slot])
        if self._has_draft(sequence):
            rows = min(rows, table.draft_len[slot])
        digests = extend_digests(
            sequence.digests, table.tokens[slot, : int(rows)], self._pools.block_size
        )
        return digests[: int(rows) // self._pools.block_size]

    def _computes(self, digest: bytes, with_draft: bool) -> bool:
        owner = self._computing.get(digest)
        return owner is not None and (owner.fills_draft or not with_draft)

    def _computed(self, sequence: Sequence, digests: list[bytes]) -> None:
        for digest in digests:
            if self._computing.get(digest) is sequence:
                del self._computing[digest]
