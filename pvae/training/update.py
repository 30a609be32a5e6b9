"""Moving the parameters against their gradients, in few kernels and little Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Adam, AdamW, Optimizer

from pvae.support.refusals import shown

__all__ = ["Update", "require_optimizer"]

_USUAL = "lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)"


@dataclass(frozen=True)
class _State:
    """Some leaves, and what a fused Adam keeps for each."""

    leaves: list[Tensor]
    exp_avg: list[Tensor]
    exp_avg_sq: list[Tensor]
    steps: list[Tensor]


class Update:
    """One step of an optimizer, on the leaves that have a gradient.

    A fused `Adam` or `AdamW` is stepped by its kernel, on its own state: what `step` does in Python for every
    parameter, half its time for a small net, is done once. Any other optimizer is asked as usual.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._states: dict[tuple[Any, ...], _State] = {}
        self.is_fused = _is_fused(optimizer)

    def __call__(
        self, leaves: Sequence[Tensor], gradients: Sequence[Tensor | None], broken: Tensor | None = None
    ) -> None:
        """Step; a fused optimizer moves nothing where `broken`, a float32 scalar on the device, is 1."""
        gradients = [_laid_out_as(leaf, each) for leaf, each in zip(leaves, gradients, strict=True)]
        key = (id(leaves), *(gradient is not None for gradient in gradients))
        if key in self._states:
            self._kernel(self._states[key], [gradient for gradient in gradients if gradient is not None], broken)
            return
        self.optimizer.zero_grad()
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        if broken is not None:
            self.optimizer.found_inf = broken  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.is_fused:
            used = [leaf for leaf, gradient in zip(leaves, gradients, strict=True) if gradient is not None]
            kept = [self.optimizer.state[leaf] for leaf in used]
            names = ("exp_avg", "exp_avg_sq", "step")
            self._states[key] = _State(used, *([s[n] for s in kept] for n in names))

    def require_rate(self, step: int) -> None:
        """Raise FloatingPointError, before a step is made, if a learning rate is no finite number."""
        for group in self.optimizer.param_groups:
            rate = group.get("lr")
            # One that is a tensor may be on a GPU, which would have to be waited for.
            if isinstance(rate, (int, float)) and not math.isfinite(rate):
                raise FloatingPointError(
                    f"step {step}: the optimizer's lr is {rate}; give an lr, and a schedule, that stay finite. The "
                    f"weights of step {step - 1} are kept"
                )

    @torch.no_grad()
    def _kernel(self, state: _State, gradients: list[Tensor], broken: Tensor | None) -> None:
        group = self.optimizer.param_groups[0]
        kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
        torch._foreach_add_(state.steps, 1)
        kernel(
            state.leaves,
            gradients,
            state.exp_avg,
            state.exp_avg_sq,
            [],
            state.steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=group["maximize"],
            found_inf=broken,
        )
        if broken is not None:
            torch._foreach_sub_(state.steps, [broken] * len(state.steps))


def require_optimizer(optimizer: Any, leaves: Sequence[Tensor]) -> None:
    """Raise ValueError unless this is an optimizer that can step at least one of the leaves."""
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"optimizer must make a torch optimizer from parameters, got {shown(optimizer)}; give for example {_USUAL}"
        )
    if isinstance(optimizer, LBFGS):
        raise ValueError(
            f"optimizer must step from one gradient, and LBFGS asks for many of one batch; give for example {_USUAL}"
        )
    held = {id(leaf) for group in optimizer.param_groups for leaf in group["params"]}
    if not any(id(leaf) in held for leaf in leaves):
        raise ValueError(
            f"optimizer must hold what is trained, and holds none of these {len(leaves)} parameters; build it from the "
            f"argument it is given, as in {_USUAL}"
        )


def _laid_out_as(leaf: Tensor, gradient: Tensor | None) -> Tensor | None:
    """The gradient in the memory layout of its leaf: a fused kernel goes through both side by side.

    On a CPU it does not look, and would move the wrong numbers, by what `autograd.grad` gives for a transposed weight.
    """
    if gradient is None or gradient.stride() == leaf.stride():
        return gradient
    return torch.empty_like(leaf).copy_(gradient)


def _is_fused(optimizer: Optimizer) -> bool:
    """Whether the optimizer is one call of torch's fused Adam kernel, with nobody else taking part."""
    group = optimizer.param_groups[0]
    kinds = {(leaf.device, leaf.dtype) for leaf in group["params"]}
    return (
        type(optimizer) in (Adam, AdamW)
        and len(optimizer.param_groups) == len(kinds) == 1
        and bool(group["fused"])
        and not (group["amsgrad"] or group["differentiable"])
        and not (optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)
    )
