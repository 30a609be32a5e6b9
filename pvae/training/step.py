"""One training step: from a batch to a loss and its gradients, by running the pair or by replaying its trace."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import pyro
import pyro.infer
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pvae.contexts import seeded
from pvae.params import Parameters
from pvae.settings import settings_of
from pvae.training.graph import flatten

__all__ = ["EagerStep", "PyroStep", "Step", "TracedStep"]

log = logging.getLogger(__name__)

Batch = tuple[Tensor, ...]
Gradients = list[Tensor | None]
_MOST_SETTINGS = 8
Loss = Callable[[Batch, Tensor | float], Tensor]


class Step(Protocol):
    """Loss per datum (a scalar without history) and the gradient of each leaf, None for a leaf that took no part."""

    def __call__(self, batch: Batch, kl_weight: Tensor | float) -> tuple[Tensor, Gradients]:
        """Run one step on a batch."""


class EagerStep:
    """Run the pair under Pyro's handlers, every time."""

    def __init__(self, loss: Loss, parameters: Parameters) -> None:
        self.loss = loss
        self.leaves = list(parameters.leaves.values())

    def __call__(self, batch: Batch, kl_weight: Tensor | float) -> tuple[Tensor, Gradients]:
        """Loss and gradients by autograd."""
        loss = self.loss(batch, kl_weight)
        return loss.detach(), list(torch.autograd.grad(loss, self.leaves, allow_unused=True))


class PyroStep:
    """Run one of Pyro's own objectives, which sum over data and call `backward` themselves."""

    def __init__(self, objective: pyro.infer.ELBO, model: Any, guide: Any, parameters: Parameters) -> None:
        self.objective, self.model, self.guide = objective, model, guide
        self.leaves = list(parameters.leaves.values())

    def __call__(self, batch: Batch, kl_weight: Tensor | float) -> tuple[Tensor, Gradients]:
        """Loss and gradients, turned into means per datum."""
        for leaf in self.leaves:
            leaf.grad = None
        loss = self.objective.loss_and_grads(self.model, self.guide, *batch)  # type: ignore[attr-defined]
        num_data = len(batch[0])
        gradients = [None if leaf.grad is None else leaf.grad / num_data for leaf in self.leaves]
        return torch.as_tensor(loss / num_data), gradients


class TracedStep:
    """Trace an eager step once per batch shape into a flat graph of tensor operations, then run only the graph.

    Handlers, distributions and the param store leave the hot loop; random operations stay in the graph and draw
    afresh each time. A graph is used only if it repeats the eager loss from the same random state; a pair that
    does not (it branches on data, or draws outside torch) goes on eagerly, with one log line that says why.
    A graph freezes the settings that the pair reads from Python (`pvae.settings`), so it is traced anew when
    they change, a few times; let what changes often be one tensor that is filled.
    """

    def __init__(self, eager: EagerStep, parameters: Parameters) -> None:
        self.eager = eager
        self.parameters = parameters
        self.fallback: str | None = None
        self._graphs: dict[Any, tuple[fx.GraphModule, list[bool]]] = {}

    def __call__(self, batch: Batch, kl_weight: Tensor | float) -> tuple[Tensor, Gradients]:
        """Loss and gradients from the graph for this batch's shape."""
        if self.fallback is not None:
            return self.eager(batch, kl_weight)
        key = (self._settings(), *((part.shape, part.dtype) for part in batch), isinstance(kl_weight, Tensor))
        if key not in self._graphs:
            if len({settings for settings, *_ in (key, *self._graphs)}) > _MOST_SETTINGS:
                self._fall_back("its Python attributes keep changing, which a graph would freeze")
                return self.eager(batch, kl_weight)
            graph = self._trace(batch, kl_weight)
            if graph is None:
                return self.eager(batch, kl_weight)
            self._graphs[key] = graph
        graph_module, used = self._graphs[key]
        inputs = (*batch, kl_weight) if isinstance(kl_weight, Tensor) else batch
        with torch.no_grad():
            loss, *flat = graph_module(*self.eager.leaves, *inputs)
        gradients = iter(flat)
        return loss, [next(gradients) if flag else None for flag in used]

    def _settings(self) -> tuple[Any, ...]:
        return settings_of(self.parameters.functions, self.parameters.modules)

    def _trace(self, batch: Batch, kl_weight: Tensor | float) -> tuple[fx.GraphModule, list[bool]] | None:
        leaves = self.eager.leaves
        used: list[bool] = []

        def step(*inputs: Tensor) -> list[Tensor]:
            weight = inputs[len(batch)] if isinstance(kl_weight, Tensor) else kl_weight
            loss, gradients = self.eager(inputs[: len(batch)], weight)
            used[:] = [gradient is not None for gradient in gradients]
            return [loss, *(gradient for gradient in gradients if gradient is not None)]

        inputs = (*batch, kl_weight) if isinstance(kl_weight, Tensor) else batch
        device = batch[0].device
        with self._unchanged_buffers(), seeded(0, device):
            draws, settings = _draws_outside_torch(), self._settings()
            expected, _ = self.eager(batch, kl_weight)
            if _draws_outside_torch() != draws:
                self._fall_back("it draws random numbers from numpy or Python, which a graph would freeze")
                return None
            if self._settings() != settings:
                self._fall_back("it changes its own attributes when it runs, which a graph would not")
                return None
        try:
            # Another seed than that of the comparison, so that nothing random passes for a constant.
            with self._unchanged_buffers(), seeded(1, device), pyro.validation_enabled(False):
                traced = flatten(make_fx(step)(*inputs), leaves)
            with self._unchanged_buffers(), seeded(0, device), torch.no_grad():
                found = traced(*leaves, *inputs)[0]
        except Exception as error:  # whatever tracing trips over, the eager step is right
            self._fall_back(" ".join(str(error).split())[:200])
            return None
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-6, equal_nan=True):
            self._fall_back(f"its graph gives loss {found.item():.6g}, the pair itself {expected.item():.6g}")
            return None
        return traced, used

    def _fall_back(self, reason: str) -> None:
        self.fallback = reason
        log.warning("training steps run eagerly, the pair cannot be traced: %s", reason)

    @contextmanager
    def _unchanged_buffers(self) -> Iterator[None]:
        before = [(buffer, buffer.clone()) for buffer in self.parameters.buffers.values()]
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)


def _draws_outside_torch() -> tuple[Any, ...]:
    """The state of the generators that no graph holds."""
    return random.getstate(), str(np.random.get_state(legacy=False))
