"""The categorical likelihood of values without an order."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor, nn

from pvae.support.refusals import whole

__all__ = ["Categorical"]


class Categorical(nn.Module):
    """Categories 0 ... num_categories - 1: p(x | z) = prod_d Categorical(x_d | softmax(logits_d)).

    Raises: ValueError for fewer than 2 categories.
    """

    def __init__(self, num_categories: int) -> None:
        super().__init__()
        self.num_parameters = whole("num_categories", num_categories, 2, usual="the number of values of x")

    def parameter_shape(self, x_shape: Sequence[int]) -> tuple[int, ...]:
        """(*x_shape, num_categories): the logits."""
        return (*x_shape, self.num_parameters)

    def forward(self, parameters: Tensor, x_shape: Sequence[int]) -> dist.TorchDistribution:
        """Logits (..., *x_shape, num_categories) -> a distribution with event shape `x_shape`."""
        return dist.Categorical(logits=parameters).to_event(len(x_shape))
