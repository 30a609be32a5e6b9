"""Chains between prior and posterior along a path of temperatures, and the weights they collect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from pvae.estimators.density.hmc import transition
from pvae.estimators.density.unconstrained import UnconstrainedJoint
from pvae.estimators.weights.stream import Estimate, WeightStream
from pvae.pair.sites import Batch

__all__ = ["Path", "Schedule", "temperatures"]

Schedule = Literal["linear", "sigmoidal"]
_DELTA = 4.0


def temperatures(num_temperatures: int, schedule: Schedule) -> list[float]:
    """0 = beta_0 < ... < beta_T = 1, equally spaced, or closer at both ends: a logistic curve from -4 to 4, rescaled.

    Wu, Burda, Salakhutdinov and Grosse (2017), On the quantitative analysis of decoder-based generative models.
    """
    even = torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64, device="cpu")
    if schedule == "linear":
        return even.tolist()
    curve = (_DELTA * (2 * even - 1)).sigmoid()
    return ((curve - curve[0]) / (curve[-1] - curve[0])).tolist()


@dataclass(frozen=True)
class Path:
    """A path of temperatures with its frozen step sizes (T + 1, B), and the K chains to go along it, some at once."""

    joint: UnconstrainedJoint
    batch: Batch
    num_samples: int
    chunk: int
    betas: list[float]
    steps: Tensor
    num_leapfrog: int

    def forward(self) -> Estimate:
        """log 1/K sum_k exp(lw_k) from chains that start at the prior: low in expectation."""
        return self._stream(self._forward)

    def reverse(self, latents: Mapping[str, Tensor]) -> Estimate:
        """log 1/K sum_k exp(-lw_k) from chains that start at posterior draws (1, B, ...): low for -log p(x).

        The K chains of a datum share their start, and differ in all that follows.
        """
        starts = {name: value.expand(self.chunk, *value.shape[1:]) for name, value in latents.items()}
        return self._stream(partial(self._reverse, starts))

    def _stream(self, weigh: Callable[[], Tensor]) -> Estimate:
        stream = WeightStream(self.num_samples)
        for start in range(0, self.num_samples, self.chunk):
            stream.update(weigh()[: self.num_samples - start])
        return stream.estimate()

    def _forward(self) -> Tensor:
        """lw = sum_t (beta_t - beta_(t-1)) log p(x | z_(t-1)), each z_t from a transition at beta_t: (k, B)."""
        target, point = partial(self.joint.point, self.batch), self.joint.locate(self.batch, self.chunk)
        log_weights = torch.zeros_like(point.log_likelihood, dtype=torch.float64)
        last = len(self.betas) - 1
        for t in range(1, last + 1):
            log_weights += (self.betas[t] - self.betas[t - 1]) * point.log_likelihood.double()
            if t < last:  # the move at 1 would change no weight
                point, _ = transition(target, point, self.betas[t], self.steps[t], self.num_leapfrog)
        return log_weights

    def _reverse(self, starts: Mapping[str, Tensor]) -> Tensor:
        """-lw of the same sum, its terms taken from the last to the first, each after the transition: (k, B)."""
        target, point = partial(self.joint.point, self.batch), self.joint.locate(self.batch, self.chunk, starts)
        log_weights = torch.zeros_like(point.log_likelihood, dtype=torch.float64)
        for t in range(len(self.betas) - 1, 0, -1):
            point, _ = transition(target, point, self.betas[t], self.steps[t], self.num_leapfrog)
            log_weights -= (self.betas[t] - self.betas[t - 1]) * point.log_likelihood.double()
        return log_weights
