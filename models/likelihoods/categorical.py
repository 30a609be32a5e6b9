"""The categorical likelihood of values without an order."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor, nn

__all__ = ["Categorical"]


class Categorical(nn.Module):
    """Categories 0 ... num_categories - 1: p(x | z) = prod_d Categorical(x_d | softmax(logits_d)).

    Raises: ValueError for fewer than 2 categories.
    """

    def __init__(self, num_categories: int) -> None:
        super().__init__()
        if num_categories < 2:
            raise ValueError(f"num_categories must be at least 2, got {num_categories}; count the values of x")
        self.num_parameters = num_categories

    def parameter_shape(self, x_shape: Sequence[int]) -> tuple[int, ...]:
        """(*x_shape, num_categories): the logits."""
        return (*x_shape, self.num_parameters)

    def forward(self, parameters: Tensor, x_shape: Sequence[int]) -> dist.TorchDistribution:
        """Logits (..., *x_shape, num_categories) -> a distribution with event shape `x_shape`."""
        return dist.Categorical(logits=parameters).to_event(len(x_shape))
