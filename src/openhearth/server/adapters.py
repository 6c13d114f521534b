"""Which of the served models an adapter belongs to: by what it was trained on, and by what fits.

Does not: read adapters, or load models; shapes are compared with a model that has no storage.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from openhearth.errors import UsageError
from openhearth.models import find_architecture
from openhearth.models.adapter_files import StoredAdapter
from openhearth.models.lora import check_fit
from openhearth.server.planning import LoadPlan


def assign_adapters(adapters: Mapping[str, StoredAdapter], plans: Mapping[str, LoadPlan], *,
                    wanted: Mapping[str, str] | None = None) -> dict[str, dict[str, StoredAdapter]]:
    """Return model's name -> adapters by name. plans: of the models, by name; wanted: adapter -> model.

    An adapter goes to the model that is wanted for it, else to the one that it was trained on, else to the
    only one that it fits.

    Raises: UsageError when there is none, or several.
    """
    with torch.device("meta"):
        shapes = {name: find_architecture(plan.spec.model_type).build(plan.spec)
                  for name, plan in plans.items()}
    found: dict[str, dict[str, StoredAdapter]] = {name: {} for name in plans}
    for name, adapter in adapters.items():
        found[_base_of(name, adapter, plans, shapes, (wanted or {}).get(name))][name] = adapter
    return found


def _base_of(name: str, adapter: StoredAdapter, plans: Mapping[str, LoadPlan],
             shapes: Mapping[str, nn.Module], wanted: str | None) -> str:
    if wanted is not None and wanted not in plans:
        raise UsageError(f"adapter `{name}` is for `{wanted}`, which is not served",
                         why=f"served: {', '.join(plans)}")
    candidates = [wanted] if wanted is not None else [
        one for one, plan in plans.items() if adapter.base_weights_sha256 == plan.stored.weights_sha256]
    problems: dict[str, UsageError] = {}
    for base in candidates or plans:
        try:
            check_fit(shapes[base], name, adapter.weights)
        except UsageError as error:
            problems[base] = error
    fitting = [base for base in candidates or plans if base not in problems]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UsageError(f"adapter `{name}` fits {' and '.join(fitting)}",
                         why="it does not say what it was trained on",
                         hint=f"--adapter {name}@{fitting[0]}=...")
    if len(problems) == 1:
        raise next(iter(problems.values()))
    reasons = [f"{base}: {error.why.splitlines()[0]}" for base, error in problems.items()]
    raise UsageError(f"adapter `{name}` fits no model that is served", why="\n".join(reasons),
                     hint="serve the model that it was trained on as well")
