"""Low-rank adapters beside the linear layers of a model, several at once.

A layer with an adapter computes ``base(x) + scale * B(A(x))``; A and B are linear layers like any other, so
serving and training run the same kernels on them. Every adapter has a slot in the layers it touches, and
the rows of a pack say which slot they take (`kernels/lora.py: AdapterRows`). Source: arXiv 2106.09685,
section 4.1.

With a magnitude per output (DoRA) the layer computes ``m / |W + scale * B A| * (W x + scale * B(A(x)))`` and
adds its bias; the norm of a row is a constant to the gradient. Source: arXiv 2402.09353, sections 4.1, 4.3.

Does not: read adapter files, merge into the base, or adapt embeddings and the output matrix.
"""

# R rank, I inputs, O outputs

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from openhearth.errors import UsageError
from openhearth.models.expert_adapters import split_stacks
from openhearth.models.latent import LatentHeads
from openhearth.models.linear import Linear, can_pack
from openhearth.models.pairs import LatentPair, LoraPair

_SHOWN = 5


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter as it is trained and stored.

    pairs: name of a linear layer -> A [R, I] and B [O, R]. scale: alpha / rank, or whatever the adapter's
    file says. magnitudes: of DoRA, per layer float32 [O]; empty for plain LoRA. stacks: of all experts of a
    layer at once, as `expert_adapters.split_stacks` takes them.
    Example: ``AdapterWeights({"model.layers.0.self_attn.q_proj": (a_RI, b_OR)}, scale=2.0)``.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    scale: float
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict)
    stacks: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def apart(self, model: nn.Module) -> AdapterWeights:
        """Return the adapter with a pair for every matrix of the model's experts. Raises: UsageError."""
        if not self.stacks:
            return self
        return replace(self, pairs={**self.pairs, **split_stacks(model, self.stacks)}, stacks={})


class Adapter(nn.Module):
    """An attached adapter. slot: its number in the layers; version: hash of its weights and scale.

    Example: ``attach(model, "polite", weights).slot == 0``.
    """

    def __init__(self, name: str, slot: int, version: str, pairs: Mapping[str, LoraPair]) -> None:
        super().__init__()
        self.name, self.slot, self.version = name, slot, version
        self.layer_names = tuple(pairs)
        self.pairs = nn.ModuleList(pairs.values())


def attach(model: nn.Module, name: str, weights: AdapterWeights, *, is_trainable: bool = False) -> Adapter:
    """Put an adapter beside a model's layers, in the model's dtype, and return it.

    is_trainable: keep A and B as parameters. Raises: UsageError for a name already taken, a layer that the
    model does not have, or shapes that do not fit it; nothing is attached then.
    """
    if name in model.adapters:
        raise UsageError(f"an adapter named `{name}` is attached already",
                         hint="detach it, or choose another name")
    weights = weights.apart(model)
    layers = check_fit(model, name, weights)
    used = {adapter.slot for adapter in model.adapters.values()}
    slot = next(slot for slot in range(len(used) + 1) if slot not in used)
    pairs = {}
    for path, (a_RI, b_OR) in weights.pairs.items():
        halves = [half.detach().to(model.dtype, copy=True) for half in (a_RI, b_OR)]
        if isinstance(layers[path], LatentHeads):
            pair = LatentPair(*halves, weights.scale, layers[path])
        else:
            pair = LoraPair(*halves, weights.scale, weights.magnitudes.get(path))
        pair.to(model.device).requires_grad_(is_trainable)
        if can_pack(model.dtype, model.device):
            pair.pack(is_trainable=is_trainable)
        pairs[path] = pair
    for path, pair in pairs.items():
        held = layers[path].lora
        layers[path].lora = (*held[:slot], *(None,) * (slot - len(held)), pair, *held[slot + 1:])
    model.adapters[name] = Adapter(name, slot, _version(weights), pairs)
    return model.adapters[name]


def detach(model: nn.Module, name: str) -> None:
    """Take an adapter away. Raises: UsageError when there is none of that name."""
    adapter = find_adapter(model, name)
    del model.adapters[name]
    for layer in model.modules():
        if isinstance(layer, Linear | LatentHeads) and len(layer.lora) > adapter.slot:
            layer.lora = (*layer.lora[:adapter.slot], None, *layer.lora[adapter.slot + 1:])


def find_adapter(model: nn.Module, name: str) -> Adapter:
    """Return an attached adapter. Raises: UsageError, naming those there are."""
    if name not in model.adapters:
        raise UsageError(f"no adapter named `{name}`", why=f"attached: {', '.join(model.adapters) or 'none'}")
    return model.adapters[name]


def check_fit(model: nn.Module, name: str, weights: AdapterWeights) -> dict[str, Linear | LatentHeads]:
    """Return the model's layers that can be adapted, by name; it may be one without storage.

    Raises: UsageError when an adapter adapts what the model does not have, or has other shapes.
    """
    layers = {path: layer for path, layer in model.named_modules()
              if isinstance(layer, Linear | LatentHeads)}
    weights = weights.apart(model)
    problems = [] if weights.pairs else ["it adapts no layer"]
    for path, (a_RI, b_OR) in weights.pairs.items():
        if path not in layers or path == "lm_head":
            problems.append(f"`{path}` is no layer that can be adapted")
            continue
        layer = layers[path]
        rank = a_RI.shape[0]
        if a_RI.shape != (rank, layer.in_features) or b_OR.shape != (layer.out_features, rank) or rank == 0:
            problems.append(f"`{path}` has A {list(a_RI.shape)} and B {list(b_OR.shape)}, expected "
                            f"[rank, {layer.in_features}] and [{layer.out_features}, rank]")
        magnitude_O = weights.magnitudes.get(path)
        if magnitude_O is not None and isinstance(layer, LatentHeads):
            problems.append(f"`{path}` takes no magnitudes (DoRA): what they would scale is never computed")
        elif magnitude_O is not None and magnitude_O.shape != (layer.out_features,):
            problems.append(f"`{path}` has magnitudes {list(magnitude_O.shape)}, expected "
                            f"[{layer.out_features}]")
    problems += [f"`{path}` has a magnitude and no A and B" for path in weights.magnitudes
                 if path not in weights.pairs]
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise UsageError(f"adapter `{name}` does not fit the model", why="\n".join(problems[:_SHOWN] + more),
                         hint="attach it to the model it was trained on")
    return layers


def _version(weights: AdapterWeights) -> str:
    digest = hashlib.sha256(struct.pack("<d", weights.scale))
    for path in sorted(weights.pairs):
        digest.update(path.encode())
        magnitude = weights.magnitudes.get(path)
        for tensor in (*weights.pairs[path], *(() if magnitude is None else (magnitude,))):
            digest.update(tensor.detach().float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
