"""AdamW, or Muon for matrices, on float32 copies of the weights that learn.

A weight in bfloat16 has 8 bits: most updates are smaller than its last one and would be lost. Each keeps a
float32 master that the optimizer moves; the weight is the master rounded. Gradients of several packs add up
in float32 (`grad_total` of a parameter): native linear layers add theirs there themselves, unrounded; others
come in the weight's type and live only until its hook has run.

Source: arXiv 1711.05101, algorithm 2 (AdamW); 1710.03740, section 3.1 (master copies); clipping by the global
norm, arXiv 1211.5063, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openhearth.tune.muon import is_for_muon, muon_step

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class AdamSettings:
    """Settings of AdamW. Example: ``AdamSettings(beta2=0.95, weight_decay=0.1)``."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0


class Optimizer:
    """AdamW over named parameters, which it owns from here on: `backward` on a loss feeds it.

    has_muon: Muon moves the matrices inside the network (`muon.py`). Vectors (norms, biases) take no weight
    decay. State: masters, two moments (one for Muon), the number of steps.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: AdamSettings, *,
                 has_muon: bool = False) -> None:
        self.parameters, self.settings = dict(sorted(parameters.items())), settings
        self.num_steps = 0
        self._masters = {name: parameter.detach() if parameter.dtype == torch.float32
                         else parameter.detach().float() for name, parameter in self.parameters.items()}
        self._grads = {name: torch.zeros_like(master) for name, master in self._masters.items()}
        self._muon = {name for name, parameter in self.parameters.items()
                      if has_muon and is_for_muon(name, parameter)}
        self._moments = [{name: torch.zeros_like(master) for name, master in self._masters.items()
                          if name not in self._muon or moment == _MOMENTS[0]} for moment in _MOMENTS]
        for name, parameter in self.parameters.items():
            parameter.grad_total = self._grads[name]
            parameter.register_post_accumulate_grad_hook(_collect)

    @property
    def num_trainable(self) -> int:
        """Numbers that learn."""
        return sum(master.numel() for master in self._masters.values())

    def gradients(self) -> dict[str, Tensor]:
        """Return the sums since the last step, float32, by name."""
        return dict(self._grads)

    def gradient_norm(self) -> float:
        """Return the Euclidean norm of all sums together; not finite when one of them is not."""
        norms = torch._foreach_norm(list(self._grads.values()))
        return float(torch.linalg.vector_norm(torch.stack(norms)))

    def drop_gradients(self) -> None:
        """Set the added-up gradients to zero."""
        torch._foreach_zero_(list(self._grads.values()))

    @torch.no_grad()
    def step(self, rate: float, norm: float) -> None:
        """Move every weight; gradients are scaled down to the clipping norm first, and dropped after."""
        settings, self.num_steps = self.settings, self.num_steps + 1
        if settings.clip and norm > settings.clip:
            torch._foreach_mul_(list(self._grads.values()), settings.clip / norm)
        count = torch.tensor(float(self.num_steps))
        for names, decay in self._groups():
            masters, grads, first, second = (
                [values[name] for name in names] for values in (self._masters, self._grads, *self._moments))
            torch._fused_adamw_(masters, grads, first, second, [], [count.clone() for _ in names], lr=rate,
                                beta1=settings.beta1, beta2=settings.beta2, weight_decay=decay,
                                eps=settings.epsilon, amsgrad=False, maximize=False)
        for name in sorted(self._muon):
            muon_step(self._masters[name], self._grads[name], self._moments[0][name], rate=rate,
                      weight_decay=settings.weight_decay)
        self._write_back()
        self.drop_gradients()

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs, not copied."""
        state = {f"master.{name}": master for name, master in self._masters.items()}
        for kind, moments in zip(_MOMENTS, self._moments, strict=True):
            state |= {f"{kind}.{name}": moment for name, moment in moments.items()}
        return state

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor], num_steps: int) -> None:
        """Take over the state of a checkpoint, the weights included."""
        for name, own in self.state().items():
            own.copy_(state[name])
        self.num_steps = num_steps
        self._write_back()

    def _groups(self) -> Iterator[tuple[list[str], float]]:
        rest = {name: master for name, master in self._masters.items() if name not in self._muon}
        matrices = [name for name, master in rest.items() if master.dim() > 1]
        vectors = [name for name, master in rest.items() if master.dim() <= 1]
        for names, decay in ((matrices, self.settings.weight_decay), (vectors, 0.0)):
            if names:
                yield names, decay

    def _write_back(self) -> None:
        for name, parameter in self.parameters.items():
            if parameter.dtype == torch.float32:
                torch.autograd.graph.increment_version(parameter)  # its master is its own memory
            else:
                parameter.copy_(self._masters[name])


def _collect(parameter: nn.Parameter) -> None:
    if parameter.grad is not None:  # else its layer has added it up already
        parameter.grad_total.add_(parameter.grad)
        parameter.grad = None
