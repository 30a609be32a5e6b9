"""The continuous Bernoulli likelihood of values in the unit interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pvae.models.likelihoods.per_value import PerValue

__all__ = ["ContinuousBernoulli"]


class StableContinuousBernoulli(dist.ContinuousBernoulli):
    """p(x) = C(l) sigmoid(l)^x sigmoid(-l)^(1 - x) on [0, 1] with C(l) = l / tanh(l / 2), exact at all logits l.

    torch's own cuts the probability off one rounding step from 0 and 1, beyond which its density does not
    integrate to 1 (single precision: from a logit of 16 on).
    """

    def _cont_bern_log_norm(self) -> Tensor:
        small, logits = self._near_zero(0.1)
        series = math.log(2) + self.logits.square() / 12 - 7 * self.logits.square().square() / 1440
        return torch.where(small, series, (logits / (logits / 2).tanh()).log())

    @property
    def mean(self) -> Tensor:
        """1 / (1 - exp(-l)) - 1 / l."""
        small, logits = self._near_zero(0.1)
        series = 0.5 + self.logits / 12 - self.logits**3 / 720
        return torch.where(small, series, -1 / torch.expm1(-logits) - 1 / logits)

    def icdf(self, value: Tensor) -> Tensor:
        """The quantiles at probabilities `value`."""
        flat, logits = self._near_zero(1e-6)
        falls, slope = logits < 0, -logits.abs()
        quantile = torch.log1p(torch.where(falls, value, 1 - value) * torch.expm1(slope)) / slope
        return torch.where(flat, value, torch.where(falls, quantile, 1 - quantile).clamp(0, 1))

    def _near_zero(self, width: float) -> tuple[Tensor, Tensor]:
        """Where logits are so near 0 that formulas lose their digits, and logits that are safe there."""
        near = self.logits.abs() < width
        return near, torch.where(near, torch.ones_like(self.logits), self.logits)


class ContinuousBernoulli(PerValue):
    """Values in [0, 1], ends included: p(x | z) = prod_d C(l_d) sigmoid(l_d)^x_d sigmoid(-l_d)^(1 - x_d), a density.

    It is the Bernoulli cross-entropy of grey values with the normaliser C(l) = l / tanh(l / 2) that makes it a
    log-likelihood. The decoder gives the logits l.

    Loaiza-Ganem and Cunningham (2019), The Continuous Bernoulli.
    """

    def forward(self, parameters: Tensor, x_shape: Sequence[int]) -> dist.TorchDistribution:
        """Logits (..., *x_shape) -> a distribution with event shape `x_shape`."""
        return StableContinuousBernoulli(logits=parameters).to_event(len(x_shape))
