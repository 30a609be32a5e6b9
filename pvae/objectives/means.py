"""The family that most bounds belong to: power means of importance weights, and what their gradients need."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Advantages", "Blend", "PowerMean"]


@dataclass(frozen=True)
class PowerMean:
    """R = 1/M sum_m 1/a log 1/K sum_k exp(a log w_mk), for M groups of K particles each.

    Power a = 1 gives the importance-weighted bound, a = 0 (the limit: the mean of log weights) the ELBO, a = 1 - alpha
    the Renyi bound, infinite powers the largest and the least log weight. Log weights are (M K, B), groups in a row.
    """

    power: float = 1.0
    num_groups: int = 1

    @property
    def is_linear(self) -> bool:
        """Whether R is the mean of log weights, so that its weights do not depend on the draws."""
        return self.power == 0

    def value(self, log_weights: Tensor) -> Tensor:
        """R, (B,)."""
        values = self._of_groups(self._split(log_weights))
        return values.squeeze(0) if self.num_groups == 1 else values.mean(0)

    def weights(self, log_weights: Tensor) -> Tensor:
        """dR / d log w_k, (M K, B): they sum to 1."""
        groups = self._split(log_weights)
        if self.is_linear:
            weights = torch.full_like(groups, 1 / groups.shape[1])
        elif math.isinf(self.power):
            best = (groups * math.copysign(1.0, self.power)).argmax(1, keepdim=True)
            weights = torch.zeros_like(groups).scatter(1, best, 1.0)
        else:
            weights = (self.power * groups).softmax(1)
        return (weights / self.num_groups).flatten(0, 1)

    def slopes(self, log_weights: Tensor) -> Tensor:
        """d weights_k / d log w_k, (M K, B)."""
        if self.is_linear or math.isinf(self.power):
            return torch.zeros_like(log_weights)
        weights = self.weights(log_weights)
        return self.power * weights * (1 - self.num_groups * weights)

    def signals(self, log_weights: Tensor) -> Tensor:
        """What of R the k-th draw has a say in, (M K, B): the part that its score function is weighed by."""
        groups = self._split(log_weights)
        if self.is_linear:
            return log_weights / len(log_weights)
        return (self._of_groups(groups)[:, None] / self.num_groups).expand_as(groups).flatten(0, 1)

    def signals_without(self, log_weights: Tensor) -> Tensor:
        """`signals` with each log w_k in turn replaced by the mean of the others in its group, (M K, B).

        They do not depend on the k-th draw. Where groups have one member the others are those of all groups.
        """
        count = len(log_weights)
        if self.is_linear or count == self.num_groups:
            return (log_weights.sum(0) - log_weights) / (count - 1) / count
        groups = self._split(log_weights)
        size = groups.shape[1]
        others = (groups.sum(1, keepdim=True) - groups) / (size - 1)
        same = torch.eye(size, dtype=torch.bool, device=groups.device)[:, :, None]
        # (M, K, K, B): one copy of each group per member, that member replaced.
        replaced = torch.where(same, others[:, :, None], groups[:, None])
        values = self._of_groups(replaced.flatten(0, 1)).unflatten(0, (self.num_groups, size))
        return (values / self.num_groups).flatten(0, 1)

    def _split(self, log_weights: Tensor) -> Tensor:
        return log_weights.unflatten(0, (self.num_groups, -1))

    def _of_groups(self, groups: Tensor) -> Tensor:
        """(M, K, B) -> (M, B)."""
        if self.is_linear:
            return groups.mean(1)
        if math.isinf(self.power):
            return groups.amax(1) if self.power > 0 else groups.amin(1)
        return ((self.power * groups).logsumexp(1) - math.log(groups.shape[1])) / self.power


class Blend:
    """A sum of power means, each with a factor: what an objective makes of log weights.

    A group of one particle gives its log weight whatever the power, so such a mean is taken as the linear one.

    Args:
        terms: (factor, power mean) pairs.
        num_particles: rows of the log weights.
    """

    def __init__(self, terms: list[tuple[float, PowerMean]], num_particles: int) -> None:
        self.terms = [
            (factor, PowerMean(0.0) if mean.num_groups == num_particles else mean) for factor, mean in terms if factor
        ]

    def value(self, log_weights: Tensor) -> Tensor:
        """(B,)."""
        return self._sum(PowerMean.value, log_weights)

    def weights(self, log_weights: Tensor) -> Tensor:
        """Derivatives by each log weight, (K, B)."""
        return self._sum(PowerMean.weights, log_weights)

    def varying_weights(self, log_weights: Tensor) -> Tensor:
        """`weights` without their constant part, which the score function's mean of 0 makes superfluous, (K, B)."""
        parts = [factor * mean.weights(log_weights) for factor, mean in self.terms if not mean.is_linear]
        return sum(parts, torch.zeros_like(log_weights))

    def slopes(self, log_weights: Tensor) -> Tensor:
        """Derivatives of each weight by its own log weight, (K, B)."""
        return self._sum(PowerMean.slopes, log_weights)

    def signals(self, log_weights: Tensor) -> Tensor:
        """What each draw has a say in, (K, B)."""
        return self._sum(PowerMean.signals, log_weights)

    def signals_without(self, log_weights: Tensor) -> Tensor:
        """`signals` as the other draws predict them, (K, B)."""
        return self._sum(PowerMean.signals_without, log_weights)

    def _sum(self, part: Callable[[PowerMean, Tensor], Tensor], log_weights: Tensor) -> Tensor:
        first, *rest = [factor * part(mean, log_weights) for factor, mean in self.terms]
        return sum(rest, first)


class Advantages(NamedTuple):
    """What a baseline makes of signals.

    `values` (K, B) are the signals less what was to be expected of them, without history; `scale` multiplies the whole
    gradient of the sites that learn by score function; `loss` (B,) trains the baseline itself.
    """

    values: Tensor
    scale: Tensor | float
    loss: Tensor | float
