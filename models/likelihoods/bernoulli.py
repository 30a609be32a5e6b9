"""The Bernoulli likelihood of binary values."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor, nn

__all__ = ["Bernoulli"]


class Bernoulli(nn.Module):
    """Binary values: p(x | z) = prod_d Bernoulli(x_d | sigmoid(logits_d)), for x in {0, 1}."""

    num_parameters = 1

    def parameter_shape(self, x_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the decoder's output for a datum of shape `x_shape`: the logits."""
        return tuple(x_shape)

    def forward(self, parameters: Tensor, x_shape: Sequence[int]) -> dist.TorchDistribution:
        """Logits (..., *x_shape) -> a distribution with event shape `x_shape`."""
        return dist.Bernoulli(logits=parameters).to_event(len(x_shape))
