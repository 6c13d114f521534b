"""The forward of a loaded model as a program, where the kernels allow it."""

from __future__ import annotations

from torch import nn

from openhearth.kernels import select
from openhearth.kernels.attention.inputs import KvCache
from openhearth.kernels.program import Program, Recorder
from openhearth.models.linear import Linear


def record(model: nn.Module, cache: KvCache) -> Program | None:
    """Return the model's forward over a cache as a program.

    None without native kernels for its type and device, or while its weights may still change: the
    program keeps addresses, not modules.
    """
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    linears += [part for layer in linears for pair in layer.lora if pair for part in (pair.a, pair.b)]
    if not linears or any(module.packed is None or module.weight is not None for module in linears):
        return None
    if not select.covers(model.dtype, model.device):
        return None
    recorder = Recorder(cache)
    pack = recorder.pack()
    return recorder.finish(model.forward(pack, pack, pack, pack if model.adapters else None))
