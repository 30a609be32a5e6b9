"""The Poisson likelihood of counts."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor

from pvae.models.likelihoods.per_value import PerValue

__all__ = ["Poisson"]


class Poisson(PerValue):
    """Counts 0, 1, 2, ...: p(x | z) = prod_d Poisson(x_d | exp(log_rate_d)). Its variance is its mean."""

    def forward(self, parameters: Tensor, x_shape: Sequence[int]) -> dist.TorchDistribution:
        """Log rates (..., *x_shape) -> a distribution with event shape `x_shape`."""
        return dist.Poisson(parameters.exp()).to_event(len(x_shape))
