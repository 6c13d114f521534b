"""What those who run a server ask it: is it well, what does it do, who uses it.

Does not: serve a model.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from openhearth import hardware
from openhearth.accounts import Key, Totals
from openhearth.server.accounting import Accounting
from openhearth.server.errors import Refusal
from openhearth.server.exchange import Call, Handler, Route, Stream
from openhearth.server.metrics import MEDIA_TYPE, Metrics
from openhearth.server.served import Served


def routes_of(accounting: Accounting, metrics: Metrics) -> tuple[Route, ...]:
    """Return the routes that belong to no dialect."""
    return (Route("GET", "/health", _show_health(metrics)), Route("GET", "/ready", _show_ready(metrics)),
            Route("GET", "/metrics", _show_metrics(metrics)),
            Route("GET", "/v1/server/state", _show_state(accounting, metrics)))


def _show_health(metrics: Metrics) -> Handler:
    async def show(call: Call) -> dict[str, str]:
        """`GET /health`: whether the engines live."""
        if not all(served.thread.is_alive for served in metrics.loaded()):
            raise Refusal("an engine has stopped", status=503, code="not_healthy",
                          hint="start the server again")
        return {"status": "ok"}

    return show


def _show_ready(metrics: Metrics) -> Handler:
    show_health = _show_health(metrics)

    async def show(call: Call) -> dict[str, str]:
        """`GET /ready`: whether a line has room."""
        await show_health(call)
        lines = [(served.engine.scheduler.num_waiting, served.limits.max_waiting)
                 for served in metrics.loaded()]
        if lines and all(waiting >= most for waiting, most in lines):
            raise Refusal(f"{sum(waiting for waiting, _ in lines)} completions are waiting", status=503,
                          code="not_ready", why=f"this server lets {sum(most for _, most in lines)} wait")
        return {"status": "ready"}

    return show


def _show_metrics(metrics: Metrics) -> Handler:
    async def show(call: Call) -> Stream:
        """`GET /metrics`, for admins: everything in Prometheus's text format."""
        call.require_admin()

        async def text() -> AsyncIterator[bytes]:
            yield await asyncio.to_thread(metrics.text)

        return Stream(MEDIA_TYPE, text(), lambda error: b"")

    return show


def _show_state(accounting: Accounting, metrics: Metrics) -> Handler:
    async def show(call: Call) -> dict[str, Any]:
        """`GET /v1/server/state`: load for everyone; memory and the use of all keys for admins."""
        tally, meter = call.record.tally, accounting.meter
        state: dict[str, Any] = {
            "version": version("openhearth"), "uptime_s": round(time.time() - metrics.started_s, 1),
            "tokens_per_second": metrics.tokens_per_second,
            "models": [_model(served) for served in metrics.loaded()]}
        if tally.key is not None:
            state["key"] = _key(accounting, tally.key, {tally.key.name: meter.spent(tally.key)})
        if tally.is_admin:
            memory = hardware.read_memory()
            state["memory"] = {"process_bytes": hardware.resident_bytes(),
                               "available_bytes": memory.available_bytes, "total_bytes": memory.total_bytes}
        if tally.is_admin and accounting.keys is not None:
            keys = accounting.keys.now()
            spent = await asyncio.to_thread(meter.stored, [key.name for key in keys])
            state["keys"] = [_key(accounting, key, spent) for key in keys]
        return state

    return show


def _model(served: Served) -> dict[str, Any]:
    stats = served.engine.stats()
    return {"name": served.name, "adapters": list(served.names[1:]),
            "context_tokens": served.engine.context_length, "cache_tokens": served.engine.cache_tokens,
            "waiting": stats.num_waiting, "max_waiting": served.limits.max_waiting,
            "running": stats.num_running,
            "pages": {"all": stats.num_pages, "used": stats.num_used_pages, "cached": stats.num_cached_pages,
                      "free": stats.num_free_pages},
            "tokens": {"prompt": stats.num_prompt_tokens, "cached": stats.num_cached_tokens,
                       "drawn": stats.num_drawn_tokens},
            "steps": stats.num_steps, "preemptions": stats.num_preemptions}


def _key(accounting: Accounting, key: Key, spent: Mapping[str, Totals]) -> dict[str, Any]:
    """Return what a key may use and has used."""
    requests, tokens = accounting.meter.last_minute(key)
    used = spent.get(key.name, Totals(0, 0, 0))
    return {"name": key.name, "role": key.role, "state": key.state(time.time()),
            "expires_at": key.expires_at, "limits": asdict(key.limits),
            "used": {"requests_per_minute": requests, "tokens_per_minute": tokens,
                     "tokens_per_day": used.day, "tokens_per_month": used.month, "tokens_total": used.total}}
