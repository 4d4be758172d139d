"""Streaming HTTP clients that cancel, disconnect and repeat themselves for a while."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from raw_http import request, status

SILENCE_SECONDS = 90.0


@dataclass
class Tally:
    """What became of the requests: ``whole``, ``left`` (by us) and ``refused``; ``wrong`` are texts
    that are not the beginning of what was expected."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@dataclass
class LoadClients:
    """So many clients; ``expected`` are the texts of the prompts. Use :meth:`run` once."""

    url: str
    bodies: Sequence[dict[str, Any]]
    expected: Sequence[str]
    clients: int
    seed: int = 0
    tally: Tally = field(default_factory=Tally)
    stop: bool = False

    async def run(self, seconds: float, beside: Any = None) -> Tally:
        """Load for so long; ``beside``: a coroutine that runs meanwhile."""
        tasks = [asyncio.create_task(self._client(number)) for number in range(self.clients)]
        other = None if beside is None else asyncio.create_task(beside)
        await asyncio.sleep(seconds)
        self.stop = True
        if other is not None:
            await other
        await asyncio.gather(*tasks)
        return self.tally

    async def _client(self, number: int) -> None:
        generator = random.Random(1000 * self.seed + number)
        while not self.stop:
            index = generator.randrange(len(self.bodies))
            leaves_after = generator.choice((None, None, 0, 1, 3))
            await asyncio.wait_for(self._request(index, leaves_after), SILENCE_SECONDS)

    async def _request(self, index: int, leaves_after: int | None) -> None:
        parts = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            body = json.dumps({**self.bodies[index], "stream": True}).encode()
            writer.write(request("/v1/completions", body))
            if leaves_after == 0:
                self.tally.ends["left"] += 1
                return
            text, events, whole = "", 0, False
            head = await reader.readuntil(b"\r\n\r\n")
            if status(head) != 200:
                self.tally.ends[f"refused {status(head)}"] += 1
                return
            async for line in reader:
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    whole = True
                    break
                event = json.loads(line[6:])
                if "error" in event:
                    self.tally.ends[event["error"]["code"]] += 1
                    return
                text += event["choices"][0]["text"]
                events += 1
                if events == leaves_after:
                    break
            expected = self.expected[index]
            good = text == expected if whole else expected.startswith(text)
            self.tally.ends["whole" if whole else "left"] += 1
            if not good or (not whole and leaves_after is None):
                self.tally.wrong.append(f"{index}: {text!r} is not {expected!r}")
        finally:
            writer.close()
