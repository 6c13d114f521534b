"""Adapters of experts that PEFT keeps in one pair of matrices for all experts of a layer.

transformers 5 holds a layer's experts as two stacked parameters, `gate_up_proj` and `down_proj`, and PEFT
(`target_parameters`) gives such a stack one A [E * R, I], expert after expert, and one B [O, R * E], in which
the numbers of an expert are E apart. Neither names its parameter: sizes do. In a stack [E, outputs, inputs]
A reads the inputs (peft 0.21) or, as the axes come, the outputs (peft 0.18), which is the same change
transposed; gpt-oss's stacks have the inputs first and A reads them. Here every matrix of an expert has a pair
of its own. Source: peft 0.18 and 0.21 (`ParamWrapper.get_delta_weight`).

Does not: write this layout; what is trained here has a pair for every matrix of an expert.
"""

# E experts, R rank, I inputs, O outputs

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from openhearth.errors import UsageError
from openhearth.models.experts import Experts
from openhearth.models.registry import find_architecture

Pair = tuple[Tensor, Tensor]

WRAPPED = ".base_layer"
"""PEFT wraps a module once for each of its parameters that it adapts."""
_OTHER_PATHS = {".mlp.experts": ".block_sparse_moe.experts"}
"""Of Mixtral, whose experts are elsewhere in transformers 5 than in its checkpoints."""


def split_stacks(model: nn.Module, stacks: Mapping[str, Pair]) -> dict[str, Pair]:
    """Return A [R, I] and B [O, R] for every matrix of an expert that stacks adapt, by its layer's name.

    stacks: name of a module of experts, with a `WRAPPED` for every wrapper but the last -> A and B.
    Raises: UsageError for experts that the model does not have, and for sizes that are not theirs or that two
    layouts share.
    """
    pairs: dict[str, Pair] = {}
    for path, stack in stacks.items():
        found = _split(model, path, stack)
        if twice := pairs.keys() & found.keys():
            raise UsageError(f"an adapter changes `{sorted(twice)[0]}` twice",
                             why="two of its stacks have the sizes of the same matrices")
        pairs |= found
    return pairs


def _split(model: nn.Module, wrapped_path: str, stack: Pair) -> dict[str, Pair]:
    path = wrapped_path.replace(WRAPPED, "")
    modules = dict(model.named_modules())
    if path not in modules:
        for theirs, ours in _OTHER_PATHS.items():
            path = path.removesuffix(theirs) + ours if path.endswith(theirs) else path
    experts = modules.get(path)
    if not isinstance(experts, Experts):
        raise UsageError(f"an adapter changes the experts `{path}`, which the model does not have",
                         hint="attach it to the model it was trained on")
    a_SI, b_OS = stack
    gate, up, down = experts.matrices
    width, inner = experts[0].get_submodule(down).out_features, experts[0].get_submodule(down).in_features
    sizes = (a_SI.shape[1], b_OS.shape[0])
    place = find_architecture(model.spec.model_type).fused_place(f"{path}.0.{gate}.weight")
    shapes = {(gate, up): (width, 2 * inner), (down,): (inner, width)}
    names = next((names for names, shape in shapes.items()
                  if sizes == shape or (place is None and sizes == shape[::-1])), None)
    if names is None or a_SI.shape[0] % len(experts) or b_OS.shape[1] != a_SI.shape[0]:
        raise UsageError(f"the experts `{path}` do not fit A {list(a_SI.shape)} and B {list(b_OS.shape)}",
                         why=f"{len(experts)} experts turn {width} numbers into 2 * {inner}, and {inner} "
                             f"into {width}; each has a rank's share of A and B",
                         hint="attach it to the model it was trained on")
    if sizes[0] == sizes[1] and place is None:
        raise UsageError(f"the adapter of the experts `{path}` has {sizes[0]} inputs and as many outputs",
                         why="peft 0.18 writes the same change transposed, and only sizes tell its files "
                             "from those of later versions",
                         hint="train it here, with `hearth tune`")
    a_ERI = a_SI.unflatten(0, (len(experts), -1))
    b_EOR = b_OS.unflatten(1, (-1, len(experts))).permute(2, 0, 1)
    if sizes != shapes[names]:
        a_ERI, b_EOR = b_EOR.transpose(1, 2), a_ERI.transpose(1, 2)
    found = {}
    for index, name in enumerate(names):
        if place is None:
            parts_EOR = b_EOR.chunk(len(names), 1)[index]
        else:
            parts_EOR = b_EOR[:, index::len(names)]
        found |= {f"{path}.{expert}.{name}": (a_ERI[expert], parts_EOR[expert])
                  for expert in range(len(experts))}
    return found
