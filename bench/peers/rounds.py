"""Paired rounds: ours and a peer, one after the other, with the same fresh prompts.

A pair in which other programs took more than a tenth of the cores is measured again, at most once per round
wanted. Idle workers that keep a core busy count as other programs.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from install import python_of
from processes import Worker

from openhearth.bench import Case, LoadMeter, Timed, rate_of

FOREIGN_LIMIT = 0.1


@dataclass
class Runner:
    """One engine with one model file; its process starts when it is first needed.

    variants: settings that may be tried per work; chosen: the best one per row name.
    """

    engine: str
    weights: str
    model: Path
    settings: dict[str, Any]
    home: Path
    variants: tuple[dict[str, Any], ...] = ({},)
    chosen: dict[str, dict[str, Any]] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    worker: Worker | None = None

    @property
    def name(self) -> str:
        return f"{self.engine} {self.weights}"

    def run(self, case: Case, prompts: list[list[int]], settings: dict[str, Any]) -> tuple[float, float]:
        """Return tokens per second and the processor seconds that were used."""
        if self.worker is None:
            self.worker = self.start()
        answer = self.worker.ask({"prompts": prompts, "new_tokens": case.new_tokens, "settings": settings})
        self.flags[case.name] = answer["flags"]
        timed = Timed(answer["first_s"], answer["total_s"], ())
        return rate_of(case, timed), answer["cpu_s"]

    def start(self) -> Worker:
        """Return a new process. Raises: WorkerFailed."""
        return Worker(self.engine, python_of(self.home, self.engine), self.model, self.settings, self.home)

    def close(self) -> None:
        """End the process, if there is one."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None


@dataclass(frozen=True)
class Pairs:
    """All rounds of one pair. Example: ``Pairs([300.0], [250.0], [0.01]).ratios == [1.2]``."""

    ours: list[float]
    theirs: list[float]
    foreign: list[float]

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def fresh_prompts(case: Case, vocab_size: int, numbers: random.Random) -> list[list[int]]:
    """Return random prompts that no cache has seen."""
    return [[numbers.randrange(vocab_size) for _ in range(case.prompt_tokens)]
            for _ in range(case.num_sequences)]


def explore(runner: Runner, case: Case, vocab_size: int, numbers: random.Random) -> float:
    """Try every variant of an engine's settings, the best two again, and keep the best for this row.

    Returns its rate. Raises: WorkerFailed.
    """
    rates, flags = {}, {}
    for turn in range(2):
        best_first = sorted(range(len(runner.variants)), key=lambda index: -rates.get(index, 0.0))
        for index in best_first[:2] if turn else best_first:
            rate, _ = runner.run(case, fresh_prompts(case, vocab_size, numbers), runner.variants[index])
            rates[index] = max(rate, rates.get(index, 0.0))
            flags[index] = runner.flags[case.name]
    best = max(rates, key=rates.get)
    runner.chosen[case.name], runner.flags[case.name] = runner.variants[best], flags[best]
    return rates[best]


def measure_pairs(ours: Runner, peer: Runner, case: Case, vocab_size: int, numbers: random.Random, *,
                  num_rounds: int, on_round: Callable[[str], None]) -> Pairs:
    """Run ours and the peer in alternation over prompts that are new in every round."""
    def prepare() -> Round:
        prompts = fresh_prompts(case, vocab_size, numbers)
        return lambda runner: runner.run(case, prompts, runner.chosen.get(case.name, {}))

    return alternate(ours, peer, case.name, prepare, num_rounds=num_rounds, on_round=on_round)


Round = Callable[[Runner], tuple[float, float]]
"""Has a runner do one piece of work; returns tokens per second and processor seconds."""


def alternate(ours: Runner, peer: Runner, name: str, prepare: Callable[[], Round], *,
              num_rounds: int, on_round: Callable[[str], None]) -> Pairs:
    """Run ours and the peer in alternation, each first in every other round.

    prepare: makes the work of one round.
    """
    pairs, num_noisy = Pairs([], [], []), 0
    while len(pairs.ours) < num_rounds:
        work = prepare()
        order = [ours, peer] if len(pairs.ours) % 2 == 0 else [peer, ours]
        meter, started, rates, cpu_s = LoadMeter(), time.perf_counter(), {}, 0.0
        for runner in order:
            rates[runner.name], used_s = work(runner)
            cpu_s += used_s
        foreign = meter.foreign_share(cpu_s) or 0.0
        on_round(f"{name}: {ours.name} {rates[ours.name]:.1f}, {peer.name} {rates[peer.name]:.1f} "
                 f"tokens/s, others {100 * foreign:.0f}%, {time.perf_counter() - started:.0f} s")
        if foreign > FOREIGN_LIMIT and num_noisy < num_rounds:
            num_noisy += 1
            continue
        pairs.ours.append(rates[ours.name])
        pairs.theirs.append(rates[peer.name])
        pairs.foreign.append(foreign)
    return pairs
