"""Prompts that are read and not continued: embeddings and scores.

They go through the engine's line like any request and share its steps: nobody else's answer waits for them.

Does not: know wire formats.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from openhearth.engine import Request
from openhearth.engine.reading import MeanPool, PromptScores
from openhearth.engine.records import Reader
from openhearth.server.exchange import Call

_AT_ONCE = 16
"""Prompts of one exchange that are in the line together: a long list leaves room for others."""

TokenIds = tuple[int, ...]


async def embed(call: Call, prompts: Sequence[TokenIds], adapter: str | None,
                dimensions: int | None = None) -> list[list[float]]:
    """Return a vector of length 1 for each prompt: the mean of its last hidden states.

    dimensions: the first so many numbers of the mean, None for all. Raises: PromptTooLong, QueueFull,
    UsageError.
    """
    pools = [MeanPool() for _ in prompts]
    call.count_prompt(adapter, sum(map(len, prompts)))
    await _read_all(call, prompts, pools, adapter)
    call.note(prompt_tokens=sum(map(len, prompts)), completion_tokens=0)
    return [_unit(pool.mean()[:dimensions]) for pool in pools]


async def score(call: Call, texts: Sequence[tuple[TokenIds, TokenIds]],
                adapter: str | None) -> list[list[float]]:
    """Return, for each (beginning, continuation), the log-probabilities of the continuation's tokens.

    No beginning may be empty. Raises: as `embed`.
    """
    prompts = [(*beginning, *continuation) for beginning, continuation in texts]
    scores = [PromptScores(prompt, first=len(beginning))
              for prompt, (beginning, _) in zip(prompts, texts, strict=True)]
    call.count_prompt(adapter, sum(map(len, prompts)))
    await _read_all(call, prompts, scores, adapter)
    call.note(prompt_tokens=sum(map(len, prompts)), completion_tokens=0)
    return [one.logprobs for one in scores]


async def score_whole(call: Call, prompts: Sequence[TokenIds], adapter: str | None,
                      num_top: int) -> list[PromptScores]:
    """Return the scores of all tokens of each prompt but its first. Usage is counted by the caller.

    Raises: as `embed`.
    """
    scores = [PromptScores(prompt, num_top=num_top) for prompt in prompts]
    await _read_all(call, prompts, scores, adapter)
    return scores


async def _read_all(call: Call, prompts: Sequence[TokenIds], readers: Sequence[Reader],
                    adapter: str | None) -> None:
    thread = call.served.thread
    waiting = iter(zip(prompts, readers, strict=True))

    async def work() -> None:
        for prompt, reader in waiting:
            ticket = await thread.submit(Request(prompt, adapter=adapter, reader=reader))
            try:
                event = await ticket.events.get()
            finally:
                thread.close(ticket)
            if event.error is not None:
                raise event.error

    tasks = [asyncio.ensure_future(work()) for _ in range(min(_AT_ONCE, len(prompts)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _unit(numbers: Sequence[float]) -> list[float]:
    """Return a vector of length 1 in the same direction; its bits depend on the numbers alone."""
    length = math.sqrt(math.fsum(number * number for number in numbers))
    return [number / length for number in numbers] if length else list(numbers)
