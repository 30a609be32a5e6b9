"""The best guide of one batch: the numbers of each datum optimised by themselves, the model frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pvae.graphs.replay import Replay
from pvae.objectives.elbo import ELBO
from pvae.pair.contexts import evaluation
from pvae.pair.parameters import find_parameters
from pvae.pair.sites import Batch
from pvae.training.schedules import cosine

__all__ = ["free_guide", "optimise"]


class _Table(nn.Module):
    """Free numbers per datum in an encoder's place, (B, num_outputs); a batch of K copies gets them K times."""

    def __init__(self, numbers: Tensor) -> None:
        super().__init__()
        self.numbers = nn.Parameter(numbers)

    def forward(self, *batch: Tensor) -> Tensor:
        """The numbers, whatever the data are."""
        copies = len(batch[0]) // len(self.numbers)
        return self.numbers if copies == 1 else self.numbers.repeat(copies, 1)


def free_guide(guide: Any, batch: Batch) -> tuple[nn.Module, Tensor]:
    """A copy of the guide in which free numbers stand for what its encoder gives this batch, and those numbers.

    Call without gradients.

    Raises: ValueError for a guide without an `encoder` that gives (B, num_outputs).
    """
    encoder = getattr(guide, "encoder", None)
    if not isinstance(guide, nn.Module) or not isinstance(encoder, nn.Module):
        name = getattr(guide, "__name__", type(guide).__name__)
        raise ValueError(
            f"{name} has no `encoder` module whose numbers could be freed; pass local_guide=, a function from a batch "
            "to a guide with parameters for each of its data"
        )
    outputs: list[Any] = []
    hook = encoder.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        guide(*batch)
    finally:
        hook.remove()
    num_data = len(batch[0])
    if len(outputs) != 1 or not isinstance(outputs[0], Tensor) or outputs[0].shape[:-1] != (num_data,):
        shapes = [tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in outputs]
        raise ValueError(
            f"the guide's encoder must be called once and give numbers ({num_data}, num_outputs), got {shapes}; pass "
            "local_guide=, a function from a batch to a guide with parameters for each of its data"
        )
    # Sites and families are told apart by identity, so the copy keeps them.
    kept = [value for module in guide.modules() for name, value in vars(module).items() if name[0] != "_"]
    free = copy.deepcopy(guide, {id(value): value for value in kept})
    table = _Table(outputs[0].detach().clone())
    free.encoder = table
    return free, table.numbers


def optimise(
    model: Any,
    local: Any,
    batch: Batch,
    *,
    only: Tensor | None,
    steps: int,
    num_samples: int,
    lr: float,
    halfway: Callable[[], None],
) -> None:
    """Raise the ELBO of a local guide by Adam, in place, its rate falling to 0; call `halfway` after half the steps.

    Moved is `only`, or with None every parameter that the model does not use.

    Raises: ValueError if `only` is none of the guide's registered parameters.

    Roeder, Wu and Duvenaud (2017), Sticking the Landing.
    """
    parameters = find_parameters(model, local, batch)
    own = [leaf for name, leaf in parameters.leaves.items() if name in parameters.guide_only]
    leaves = own if only is None else [leaf for leaf in own if leaf is only]
    if only is not None and not leaves:
        raise ValueError("the guide registers no encoder of its own; call pyro.module('encoder', encoder) in the guide")
    if not leaves:
        halfway()
        return
    # Sticking the landing has no noise where the family holds the posterior, and less of it elsewhere.
    objective = ELBO(num_samples, gradient="stl")

    def ascend(*inputs: Tensor) -> list[Tensor | None]:
        with torch.enable_grad():
            bound = objective.bound(model, local, inputs)
            # Summed, so that the step of each datum does not depend on how many others there are.
            return [bound.mean().detach(), *torch.autograd.grad(-bound.sum(), leaves, allow_unused=True)]

    replay = Replay(ascend, parameters, "traced", lambda: 0, "steps of local inference")
    optimizer = torch.optim.Adam(leaves, lr=lr)
    schedule = cosine(steps)(optimizer)
    with evaluation(parameters.modules):
        for step in range(steps):
            if step == steps // 2:
                halfway()
            _, *gradients = replay(*batch)
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf.grad = gradient
            optimizer.step()
            schedule.step()
