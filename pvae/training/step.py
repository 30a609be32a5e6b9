"""One training step: from a batch to a loss and its gradients, by running the pair or by replaying its trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import pyro.infer
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from pvae.graphs.replay import Mode, Replay
from pvae.objectives.objective import Objective
from pvae.pair.parameters import Parameters
from pvae.support.batch import Batch

__all__ = ["EagerStep", "Gradients", "PyroStep", "Step", "TracedStep", "eager_step", "summed_bound"]

Gradients = Sequence[Tensor | None]
# The loss to differentiate, and what to report in its place where a KL weight is part of it.
Loss = Callable[[Batch, Tensor | float], tuple[Tensor, Tensor]]


class Step(Protocol):
    """Trains `leaves`: (loss per datum, norm of all gradients, loss to report), (3,), and the gradient of each leaf.

    Nothing returned has a history. A leaf that took no part has the gradient None. The norm is that before clipping.
    """

    leaves: list[Tensor]

    @property
    def mode(self) -> str:
        """How the step runs by now."""

    def look(self) -> None:
        """Notice what the pair reads from Python, which may have changed since the last step."""

    def __call__(self, batch: Batch, kl_weight: Tensor | float) -> tuple[Tensor, Gradients]:
        """Run one step on a batch."""


class EagerStep:
    """Run the pair under Pyro's handlers, every time."""

    mode = "eager"

    def __init__(self, loss: Loss, leaves: list[Tensor], clip_norm: float | None = None) -> None:
        self.loss, self.leaves, self.clip_norm = loss, leaves, clip_norm

    def look(self) -> None:
        """Every step looks for itself."""

    def __call__(self, batch: Batch, kl_weight: Tensor | float) -> tuple[Tensor, Gradients]:
        """Loss and gradients by autograd.

        Raises: ValueError if no leaf takes part in the loss.
        """
        loss, report = self.loss(batch, kl_weight)
        # A callback may freeze a parameter between two epochs.
        moving = [leaf for leaf in self.leaves if leaf.requires_grad]
        found = torch.autograd.grad(loss, moving, allow_unused=True) if moving and loss.requires_grad else ()
        if all(gradient is None for gradient in found):
            raise ValueError(
                f"none of the {len(self.leaves)} parameters to train takes part in the objective, so it has no "
                "gradient; let the pair use what it registers, or train both model and guide"
            )
        following = iter(found)
        gradients = [next(following) if leaf.requires_grad else None for leaf in self.leaves]
        return _finish(loss.detach(), report, gradients, self.clip_norm)


def eager_step(
    objective: pyro.infer.ELBO, model: Any, guide: Any, leaves: list[Tensor], clip_norm: float | None = None
) -> EagerStep:
    """The eager step that makes an objective, one of pvae's or of Pyro's own, as large as possible."""
    if not isinstance(objective, Objective):
        return PyroStep(objective, model, guide, leaves, clip_norm)

    def loss(batch: Batch, kl_weight: Tensor | float) -> tuple[Tensor, Tensor]:
        bound, report = objective.bound_and_report(model, guide, batch, kl_weight)
        return -bound.mean(), -report.mean()

    return EagerStep(loss, leaves, clip_norm)


def summed_bound(objective: pyro.infer.ELBO, model: Any, guide: Any, batch: Batch) -> float:
    """The objective, one of pvae's or of Pyro's own, summed over the data of a batch, in nats."""
    if isinstance(objective, Objective):
        return objective.bound(model, guide, batch).sum().item()
    return -float(objective.loss(model, guide, *batch))  # type: ignore[attr-defined]


class PyroStep(EagerStep):
    """Run one of Pyro's own objectives, which sum over data and call `backward` themselves."""

    def __init__(
        self, objective: pyro.infer.ELBO, model: Any, guide: Any, leaves: list[Tensor], clip_norm: float | None = None
    ) -> None:
        self.objective, self.model, self.guide = objective, model, guide
        self.leaves, self.clip_norm = leaves, clip_norm

    def __call__(self, batch: Batch, kl_weight: Tensor | float) -> tuple[Tensor, Gradients]:
        """Loss and gradients, turned into means per datum."""
        for leaf in self.leaves:
            leaf.grad = None
        loss = self.objective.loss_and_grads(self.model, self.guide, *batch)  # type: ignore[attr-defined]
        num_data = len(batch[0])
        gradients = [None if leaf.grad is None else leaf.grad / num_data for leaf in self.leaves]
        per_datum = torch.as_tensor(loss / num_data, device=batch[0].device)
        return _finish(per_datum, per_datum, gradients, self.clip_norm)


class TracedStep:
    """Replay an eager step by its graph, so that no handler, distribution or param store is in the hot loop."""

    def __init__(
        self, eager: EagerStep, parameters: Parameters, mode: Mode = "traced", steps_left: Callable[[], int] = lambda: 0
    ) -> None:
        self.leaves, self._eager, self._num_parts = eager.leaves, eager, 0
        self.replay = Replay(self._flat, parameters, mode, steps_left, "training steps")

    @property
    def mode(self) -> str:
        """How most steps run by now."""
        return self.replay.mode

    def look(self) -> None:
        """Trace anew if the pair's settings changed."""
        self.replay.look()

    def __call__(self, batch: Batch, kl_weight: Tensor | float) -> tuple[Tensor, Gradients]:
        """Loss and gradients from the graph for this batch's shape."""
        self._num_parts = len(batch)
        inputs = (*batch, kl_weight) if isinstance(kl_weight, Tensor) else batch
        pulse, *gradients = self.replay(*inputs)
        assert pulse is not None
        return pulse, gradients

    def _flat(self, *inputs: Tensor) -> list[Tensor | None]:
        """The eager step with nothing but tensors as inputs: the parts of a batch, and the KL weight if it changes."""
        batch, rest = inputs[: self._num_parts], inputs[self._num_parts :]
        pulse, gradients = self._eager(batch, rest[0] if rest else 1.0)
        return [pulse, *gradients]


def _finish(loss: Tensor, report: Tensor, gradients: Gradients, clip_norm: float | None) -> tuple[Tensor, Gradients]:
    norm = get_total_norm([gradient for gradient in gradients if gradient is not None])
    dtype = torch.promote_types(loss.dtype, norm.dtype)
    pulse = torch.stack([loss.to(dtype), norm.to(loss.device, dtype), report.to(dtype)])
    if clip_norm is not None:
        shrink = (clip_norm / (norm + 1e-6)).clamp(max=1.0)
        # Not in place: two leaves may have been given one and the same gradient.
        gradients = [None if gradient is None else gradient * shrink for gradient in gradients]
    return pulse, gradients
