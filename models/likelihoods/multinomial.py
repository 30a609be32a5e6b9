"""The multinomial likelihood of bags of words."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import constraints

from pvae.support.refusals import whole

__all__ = ["Multinomial"]


class Bag(dist.Multinomial):
    """A multinomial that scores a bag of any size given that size; its draws hold `total_count` words."""

    # torch's own wants bags of at most total_count words, whole or not.
    support = constraints.independent(constraints.nonnegative_integer, 1)


class Multinomial(nn.Module):
    """Bags of words: p(x | z, n) = n! / prod_d x_d! prod_d softmax(logits)_d^x_d, n = sum_d x_d being the datum's own.

    x (vocabulary,) holds how often each word occurs. What is scored is which words a document of its length has, so
    log p(x) is given the length, log p(x | n).

    Args:
        total_count: words in a datum that is drawn, and in its mean; no data need it.

    Raises: ValueError for a `total_count` below 1, or data that are not vectors.

    Miao, Yu and Blunsom (2016), Neural Variational Inference for Text Processing.
    """

    num_parameters = 1

    def __init__(self, total_count: int = 100) -> None:
        super().__init__()
        self.total_count = whole("total_count", total_count, usual=100)

    def parameter_shape(self, x_shape: Sequence[int]) -> tuple[int, ...]:
        """(vocabulary,): the logits."""
        if len(x_shape) != 1:
            raise ValueError(f"a bag of words is a vector of counts, got data of shape {tuple(x_shape)}; flatten each")
        return tuple(x_shape)

    def forward(self, parameters: Tensor, x_shape: Sequence[int]) -> dist.TorchDistribution:
        """Logits (..., vocabulary) -> a distribution with event shape `x_shape`."""
        return Bag(self.total_count, logits=parameters)
