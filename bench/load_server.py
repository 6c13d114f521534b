"""`hearth serve` in a process that can be asked how it is: started by `load.py`, one JSON line per question.

A line on stdin is a question, a line on stdout the state; the end of stdin is the end. The cache is touched
once before the first request, so that memory that grows later is no cache filling up.

Does not: take part in the load.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from openhearth import hardware, hub, listening, server
from openhearth.config import Config
from openhearth.kernels import freed
from openhearth.local import load


def build(settings: dict[str, Any]) -> server.Models:
    """Return the model that was asked for, loaded, its cache touched."""
    config = Config.from_env()
    stored = hub.pull(settings["model"], config)
    memory_bytes = server.usable_memory()
    [plan] = server.plan_models([stored], memory_bytes, weights=settings["weights"],
                               context_length=settings["context"])
    offer = server.Offer("model", plan, lambda: load(
        stored, weights=plan.weights, cache_bytes=plan.cache_bytes, context_length=settings["context"],
        num_threads=settings["threads"], config=config))
    models = server.Models([offer], memory_bytes=memory_bytes, limits=server.Limits(max_waiting=1024))
    kv = models.open_first().engine._cache.kv
    for part in (*kv.keys, *kv.values):
        part.zero_()
    return models


def state(models: server.Models) -> dict[str, Any]:
    """Return what is held and what was spent, with everything that can be given back given back."""
    gc.collect()
    freed.give_back()
    served = models.first.served
    thread = served.thread

    def look(engine: Any) -> Any:
        if not engine.has_work:
            engine.pages.check()
        return engine.stats()

    stats = asyncio.run(thread.run(look))
    engine_s, other_s = processor_times(thread._thread.native_id)
    pooled = sum(one.name.startswith("asyncio_") for one in threading.enumerate())  # it fills up to its size
    return {"pages_used": stats.num_used_pages, "running": stats.num_running, "waiting": stats.num_waiting,
            "pages_lost": (stats.num_pages - stats.num_used_pages - stats.num_free_pages
                           - stats.num_cached_pages),
            "steps": stats.num_steps, "drawn_tokens": stats.num_drawn_tokens,
            "prompt_tokens": stats.num_prompt_tokens, "cached_tokens": stats.num_cached_tokens,
            "leases": models.first.num_leases, "threads": len(os.listdir("/proc/self/task")) - pooled,
            "files": len(os.listdir("/proc/self/fd")), "resident_bytes": hardware.resident_bytes(),
            "engine_s": engine_s, "other_s": other_s}


def processor_times(engine_id: int) -> tuple[float, float]:
    """Return processor seconds of the engine with its kernels' workers, and those of everything else.

    Workers of the kernels are the threads that Python does not know; HTTP, templates, tokenizers and
    detokenising run in Python's other threads.
    """
    python_ids = {thread.native_id for thread in threading.enumerate()} - {engine_id}
    times = {True: 0.0, False: 0.0}
    for name in os.listdir("/proc/self/task"):
        fields = Path(f"/proc/self/task/{name}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        # proc_pid_stat(5): utime and stime are fields 14 and 15; state, field 3, is the first after the name.
        times[int(name) in python_ids] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return times[False], times[True]


def main() -> None:
    """Serve until stdin ends."""
    models = build(json.loads(sys.argv[1]))
    bound, is_ready = listening.bind("127.0.0.1", 0), threading.Event()
    running = server.Server(server.build_app(models), drain_s=5, on_ready=is_ready.set)
    thread = threading.Thread(target=lambda: running.run(sockets=[bound]))
    thread.start()
    is_ready.wait()
    plan = models.first.plan
    print(json.dumps({"url": listening.address_of(bound), "model": "model", "context": plan.context_length,
                      "weights": plan.weights.reason or plan.weights.form}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(state(models)), flush=True)
    running.should_exit = True
    thread.join()


if __name__ == "__main__":
    main()
