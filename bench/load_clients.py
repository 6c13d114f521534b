"""Streaming chat clients in one process: plain sockets and as little reading as possible.

What a client costs is taken from the server on a small machine, so an answer is read line by line, and only
its first and last events are parsed. A client that leaves closes its socket in the middle of its answer.

Does not: start servers, or judge what they say.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

WORDS = ("river", "stone", "lamp", "winter", "garden", "engine", "letter", "bridge", "cloud", "harbour",
         "copper", "forest", "market", "window", "silver", "mountain", "paper", "violin", "orchard", "signal")
OPENINGS = ("Write a long story about", "Explain step by step", "List everything that you know about",
            "You are a careful writer who never hurries and always says how things look. Describe")
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Work:
    """What clients do. leaving: the share of requests left half way. stop_token: one that is kept away.

    Example: ``Work(clients=8, seconds=20.0, leaving=0.0)``.
    """

    clients: int
    seconds: float
    leaving: float = 0.0
    tokens: tuple[int, int] = (16, 128)
    words: tuple[int, int] = (4, 300)
    stop_token: int | None = None
    seed: int = 0


@dataclass
class Seen:
    """What clients saw together. failures: of requests that were not left."""

    tokens: int = 0
    answers: int = 0
    left: int = 0
    first_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    wall_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Of all answers, those that were left included."""
        return self.tokens / self.wall_s

    def summary(self) -> dict[str, Any]:
        """Return the counts and percentiles as a record."""
        return {"tokens_per_s": round(self.tokens_per_s, 1), "answers": self.answers, "left": self.left,
                "failures": len(self.failures), "first_token_s": percentiles(self.first_s),
                "between_tokens_s": percentiles(self.gaps_s), "wall_s": round(self.wall_s, 1)}


def percentiles(values: list[float]) -> dict[str, float] | None:
    """Return median and 99th percentile; None of no values."""
    if not values:
        return None
    ordered = sorted(values)
    return {"p50": round(statistics.median(ordered), 4),
            "p99": round(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], 4)}


def drive(url: str, model: str, work: Work) -> Seen:
    """Let the clients work for as long as was said, and until the last answer; returns what they saw."""
    return asyncio.run(_drive(url, model, work))


async def _drive(url: str, model: str, work: Work) -> Seen:
    seen, started = Seen(), time.perf_counter()
    until = started + work.seconds
    await asyncio.gather(*(_client(url, model, work, place, until, seen) for place in range(work.clients)))
    seen.wall_s = time.perf_counter() - started
    return seen


async def _client(url: str, model: str, work: Work, place: int, until: float, seen: Seen) -> None:
    chance = random.Random(work.seed * 1000 + place)
    while time.perf_counter() < until:
        num_tokens = chance.randint(*work.tokens)
        body = {"model": model, "stream": True, "stream_options": {"include_usage": True},
                "max_tokens": num_tokens, "seed": chance.randrange(2**31), "temperature": 0.8,
                "messages": [{"role": "user", "content": _prompt(chance, work.words)}]}
        if work.stop_token is not None:
            body["logit_bias"] = {str(work.stop_token): -100}
        leaves_after = chance.randrange(num_tokens) if chance.random() < work.leaving else None
        try:
            await asyncio.wait_for(_ask(url, body, leaves_after, seen), PATIENCE_S)
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
            seen.failures.append(f"{type(error).__name__}: {error}"[:300])
            await asyncio.sleep(0.1)


def _prompt(chance: random.Random, words: tuple[int, int]) -> str:
    return f"{chance.choice(OPENINGS)} {' '.join(chance.choices(WORDS, k=chance.randint(*words)))}."


async def _ask(url: str, body: dict[str, Any], leaves_after: int | None, seen: Seen) -> None:
    """Ask once. leaves_after: events until the client leaves, None to stay. Raises: OSError, ValueError."""
    place = urlsplit(url)
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        content = json.dumps(body).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: " + place.netloc.encode()
                     + b"\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: "
                     + str(len(content)).encode() + b"\r\n\r\n" + content)
        await writer.drain()
        status = (await reader.readline()).decode("latin-1").strip()
        if " 200 " not in f"{status} ":
            raise ValueError(f"{status}: {(await reader.read(400)).decode('utf-8', 'replace')}")
        num_events, last_s, last, is_done = 0, started, b"", False
        async for line in reader:
            if line.startswith(b"data: [DONE]"):
                is_done = True
            elif line.startswith(b"data: {"):
                last = line
                if b'"content":"' in line.replace(b'": "', b'":"') and b'"content":""' not in line:
                    now = time.perf_counter()
                    (seen.gaps_s if num_events else seen.first_s).append(now - last_s)
                    num_events, last_s = num_events + 1, now
            if leaves_after is not None and num_events > leaves_after:
                seen.left += 1
                seen.tokens += num_events
                return
        if not is_done:
            raise ValueError(f"the stream ended without [DONE]: {last[:200]!r}")
        seen.answers += 1
        seen.tokens += json.loads(last.removeprefix(b"data: "))["usage"]["completion_tokens"]
    finally:
        writer.close()
