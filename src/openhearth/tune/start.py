"""Learning that goes on from an adapter: found, checked, and its shape taken over.

The adapter is continued, not merged: the base stays what it is, bit for bit, in any form it is held in, so
that the first forward is that of the adapter as it was served, and what comes out is again one adapter over
the same base.

Does not: merge, or change an adapter's rank.
"""

from __future__ import annotations

import math
from dataclasses import replace

from openhearth.errors import UsageError
from openhearth.models.adapter_files import StoredAdapter, lora_scale, read_adapter
from openhearth.runs import find_output
from openhearth.tune.methods.records import Opened
from openhearth.tune.settings import FUSED_LAYERS, LAYERS, OTHER_NAMES, TuneSettings


def find_start(settings: TuneSettings, opened: Opened) -> StoredAdapter:
    """Read the adapter that learning goes on from.

    Raises: UsageError for one of other weights; as `find_output` and `read_adapter`.
    """
    adapter = read_adapter(find_output(opened.config.home, settings.start_adapter))
    if adapter.base_weights_sha256 not in ("", opened.stored.weights_sha256):
        raise UsageError(f"the adapter `{settings.start_adapter}` is of other weights than "
                         f"`{opened.stored.name}`",
                         why=f"trained on {adapter.base_weights_sha256[:16]} (`{adapter.base_model}`), "
                             f"these are {opened.stored.weights_sha256[:16]}",
                         hint=f"hearth tune ... {adapter.base_model or 'MODEL'}")
    return adapter


def take_over(settings: TuneSettings, adapter: StoredAdapter) -> tuple[TuneSettings, dict[str, str]]:
    """Return settings with the adapter's rank and scale where nobody said them, and the reasons.

    Raises: UsageError where what was said is another rank, scale, kind or set of layers.
    """
    weights = adapter.weights
    if weights.stacks:
        raise UsageError(f"`{settings.start_adapter}` has one pair of matrices for all experts of a layer",
                         why="learning goes on from adapters with a pair for every matrix of an expert",
                         hint="start a new adapter")
    rank = next(iter(weights.pairs.values()))[0].shape[0]
    alpha = weights.scale * (math.sqrt(rank) if settings.is_rank_stabilised else rank)
    reasons = {name: f"that of `{settings.start_adapter}`"
               for name in ("lora_rank", "lora_alpha", "lora_layers") if getattr(settings, name) is None}
    leaves = {path.rpartition(".")[2] for path in weights.pairs}
    leaves = {OTHER_NAMES.get(leaf, leaf) for leaf in leaves}
    layers = tuple(layer for layer in LAYERS + FUSED_LAYERS if layer in leaves)
    settings = replace(settings, lora_rank=settings.lora_rank or rank,
                       lora_alpha=settings.lora_alpha or alpha, lora_layers=settings.lora_layers or layers)
    scale = lora_scale(settings.lora_rank, settings.lora_alpha,
                       is_rank_stabilised=settings.is_rank_stabilised)
    found = {"lora_rank": rank, "scale": weights.scale, "use_dora": bool(weights.magnitudes),
             "lora_layers": sorted(layers)}
    asked = {"lora_rank": settings.lora_rank, "scale": scale, "use_dora": settings.use_dora,
             "lora_layers": sorted(settings.lora_layers)}
    for name, value in found.items():
        if asked[name] != value:
            raise UsageError(f"{name} is `{asked[name]}`, that of `{settings.start_adapter}` is `{value}`",
                             why="an adapter goes on in the shape that it has")
    return settings, reasons
