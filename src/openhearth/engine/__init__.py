"""Token ids in, token ids out: continuous batching, paged cache, sampling."""

from openhearth.engine.asking import complete
from openhearth.engine.engine import Engine
from openhearth.engine.masks import grammar_mask
from openhearth.engine.records import (
    Completion,
    EngineStats,
    FinishReason,
    Request,
    RequestTimings,
    Sampling,
    TokenEvent,
    TokenMask,
)
from openhearth.engine.settings import CacheDtype, EngineSettings

__all__ = [
    "CacheDtype",
    "Completion",
    "Engine",
    "EngineSettings",
    "EngineStats",
    "FinishReason",
    "Request",
    "RequestTimings",
    "Sampling",
    "TokenEvent",
    "TokenMask",
    "complete",
    "grammar_mask",
]
