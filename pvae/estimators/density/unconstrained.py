"""The joint density of a model's latents and data on unconstrained space, with its gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from pvae.estimators.density.hmc import Point
from pvae.estimators.density.positions import ReadPositions, Space, WritePositions, with_event_dims
from pvae.estimators.weights.chunks import StepMode
from pvae.graphs.replay import Mode, Replay
from pvae.pair.pair import Pair
from pvae.pair.parameters import Parameters
from pvae.pair.sites import Batch, require_latents

__all__ = ["UnconstrainedJoint"]


class UnconstrainedJoint:
    """log p(z) + log |dz / du| and log p(x | z) at positions u (K, B, D), z = T(u) by the bijection of each support.

    A support may depend on other draws.

    Args:
        model: the model.
        parameters: those that it reads.
        step_mode: "eager", or how far a graph of one evaluation climbs; "auto" goes by the clock.

    Attributes: `calls_left`, how many evaluations will come, which the caller tells.
    """

    def __init__(self, model: Any, parameters: Parameters, step_mode: StepMode) -> None:
        self.pair, self.step_mode = Pair(model), step_mode
        self.calls_left = 0
        self._spaces: dict[tuple[int, int], Space] = {}
        mode: Mode = "traced" if step_mode == "eager" else step_mode
        self._replay = Replay(self._evaluate, parameters, mode, lambda: self.calls_left, "annealed chains")
        self._traces = step_mode != "eager"

    def locate(self, batch: Batch, num_samples: int, latents: Mapping[str, Tensor] | None = None) -> Point:
        """The points of `latents`, each (K, B, ...), or of draws from the prior.

        Raises: ValueError for a model without latents, or with a discrete one.
        """
        key = num_samples, len(batch[0])
        layout = self.pair.layout(batch, num_samples)
        with ReadPositions() as read:
            self.pair.run(batch, num_samples, given=latents)
        if read.discrete:
            raise ValueError(
                f"site '{read.discrete[0]}' is discrete, and annealed chains follow gradients; "
                "use pvae.estimators.Enumeration"
            )
        if read.refusal is not None:
            raise read.refusal
        require_latents(read.positions)
        outer = with_event_dims(layout, read.event_dims)
        found = {name: outer.collect(name, value, num_samples) for name, value in read.positions.items()}
        self._spaces[key] = Space(layout, outer, {name: value.shape[2:] for name, value in found.items()})
        position = torch.cat([value.reshape(*key, -1) for value in found.values()], -1)
        # A captured graph overwrites what it gave, and a chain may stay where it starts.
        return Point(*(part.clone() for part in self.point(batch, position)))

    def point(self, batch: Batch, position: Tensor) -> Point:
        """The densities (K, B), in nats, and their gradients (K, B, D); the log prior is -inf where u is not finite."""
        self.calls_left -= 1
        _, *parts = self._replay(position, *batch) if self._traces else self._evaluate(position, *batch)
        return Point(position, *parts)  # type: ignore[arg-type]

    def _evaluate(self, position: Tensor, *batch: Tensor) -> list[Tensor]:
        key = position.shape[0], position.shape[1]
        space = self._spaces[key]
        # Validation refuses what a diverging chain proposes, and so may a distribution that was built under it.
        with torch.enable_grad(), pyro.validation_enabled(False):
            inside = position.isfinite().all(-1)
            leaf = torch.where(inside[..., None], position, 0.0).detach().requires_grad_()
            with WritePositions(space.split(leaf)) as write:
                weights = self.pair.run(batch, key[0], layout=space.layout).log_weights()
            log_prior = weights.log_prior + space.total(write.log_dets, key[0])
            slopes = [_slope(each, leaf) for each in (log_prior, weights.log_likelihood)]
        log_prior = torch.where(inside, log_prior, -math.inf).detach()
        log_likelihood = weights.log_likelihood.detach()
        # The first is compared when a graph is made: both must be right.
        return [log_prior + log_likelihood, log_prior, log_likelihood, *slopes]


def _slope(log_density: Tensor, leaf: Tensor) -> Tensor:
    """The gradient of each chain's own density: chains do not meet, so that of the sum holds them all."""
    if not log_density.requires_grad:
        return torch.zeros_like(leaf)
    return torch.autograd.grad(log_density.sum(), leaf, retain_graph=True, materialize_grads=True)[0]
